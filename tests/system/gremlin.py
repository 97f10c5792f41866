"""Harm from outside: signals to workers that they did not deserve, and an operator who can't leave the levers alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from ..fake_gpu.fake_gpu import FakeGpus
from ..process.conftest import Daemon, Event, Peer
from .caller import Notes

#: An operation that is answered later than this has hung.
_PATIENCE_S = 10.0


class Gremlin(threading.Thread):
    """Does harm until ``until``, and then undoes what can be undone."""

    def __init__(
        self,
        daemon: Daemon,
        seed: str,
        notes: Notes,
        *,
        until: float,
        restore: dict[str, Any],
        gpus: FakeGpus | None = None,
    ) -> None:
        super().__init__(name="gremlin", daemon=True)
        self.random = random.Random(f"{seed}/gremlin")
        self.target = daemon
        self.notes = notes
        self.until = until
        self.restore = restore
        self.gpus = gpus
        self.peer = Peer(daemon.control_endpoint)
        #: Workers that stand still, and when they go on.
        self._stopped: list[tuple[float, int]] = []
        #: What goes wrong with a GPU, and until when.
        self._troubles: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> None:
        deeds: list[tuple[Callable[[], object], int]] = [
            (lambda: self.strike(signal.SIGKILL), 6),
            (lambda: self.strike(signal.SIGTERM), 2),
            (self.freeze, 4),
            (self.recycle, 3),
            (self.pause, 2),
            (self.reload, 2),
            (self.scale, 2),
            (self.look, 4),
        ]
        if self.gpus:
            deeds.append((partial(self.trouble, self.gpus), 5))
        try:
            while time.monotonic() < self.until:
                self.random.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])[0]()
                time.sleep(self.random.uniform(0.1, 1.5))
                self.relent()
        except Exception as error:
            self.notes.finding(f"gremlin: {type(error).__name__}: {error}")
        finally:
            self.relent(everywhere=True)
            self.target.configure(self.restore)
            for op, keys in (("reload", {}), ("scale", self.bounds()), ("resume", {})):
                self.ask(op, **keys)
            self.peer.close()

    def bounds(self) -> dict[str, int]:
        workers = self.restore["workers"]
        return {"min": workers["min"], "max": workers["max"]}

    def ask(self, op: str, **keys: Any) -> Event:
        """An operation; that it is answered at all is all that is asked of it here."""
        begun = time.monotonic()
        answer = self.peer.all(self.peer.send(op, **keys), _PATIENCE_S)[0][-1]
        self.notes.took(time.monotonic() - begun)
        self.notes.count(f"operator: {op} {answer.get('code', '')}".rstrip())
        return answer

    # --- signals

    def workers(self) -> list[int]:
        """The worker processes, in whatever state."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.target.process.pid).children()]
        return []

    def strike(self, number: signal.Signals) -> int | None:
        """Send a signal to some worker; gives its pidfd."""
        pids = self.workers()
        if not pids:
            return None
        pid = self.random.choice(pids)
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            fd = os.pidfd_open(pid)
            # From here on the number can't come to stand for another process unnoticed.
            if psutil.Process(pid).ppid() == self.target.process.pid:
                signal.pidfd_send_signal(fd, number)
                self.notes.count(number.name)
                if number is signal.SIGSTOP:
                    return fd
            os.close(fd)
        return None

    def freeze(self) -> None:
        """Stop a worker for a while that it may survive, or not."""
        if (fd := self.strike(signal.SIGSTOP)) is not None:
            self._stopped.append((time.monotonic() + self.random.choice((0.1, 0.5, 2.0)), fd))

    def relent(self, *, everywhere: bool = False) -> None:
        """Let what has stood still, or been in trouble, for long enough go on."""
        now = time.monotonic()
        for due, fd in list(self._stopped):
            if everywhere or due <= now:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGCONT)
                os.close(fd)
                self._stopped.remove((due, fd))
        for trouble in list(self._troubles):
            if everywhere or trouble[0] <= now:
                trouble[1]()
                self._troubles.remove(trouble)

    # --- GPUs

    def trouble(self, gpus: FakeGpus) -> None:
        """NVML fails or hangs, a GPU is lost, or others take its memory; for a while."""
        gpu = self.random.randrange(2)
        match kind := self.random.choice(("fails", "hangs", "lost", "taken", "slow to release")):
            case "fails":
                ends = gpus.fail("nvmlDeviceGet*", self.random.choice(("UNKNOWN", "TIMEOUT")), gpu=gpu).clear
            case "hangs":
                ends = gpus.delay("nvmlDeviceGet*", 30.0).clear
            case "lost":
                ends = gpus.lose(gpu).clear
            case "taken":
                gpus.take(gpu, gpus.free(gpu) >> 20)
                ends = partial(gpus.take, gpu, 0)
            case _:
                gpus.release_delay_s = self.random.choice((0.2, 1.0))
                ends = partial(setattr, gpus, "release_delay_s", 0.0)
        self.notes.count(f"GPU: {kind}")
        self._troubles.append((time.monotonic() + self.random.uniform(0.2, 3.0), ends))

    # --- operations

    def recycle(self) -> None:
        self.ask("recycle", worker=self.random.choice(("all", "w0", "w1", "w2")))

    def pause(self) -> None:
        self.ask("pause")
        time.sleep(self.random.uniform(0.0, 0.5))
        self.ask("resume")

    def reload(self) -> None:
        """Another configuration, or none at all."""
        if self.random.random() < 0.3:
            self.target.file.write_text("[workers]\nhang_timeout = 1\n")
        else:
            workers = {"hang_timeout_s": self.random.choice((0.8, 1.0, 2.0))}
            self.target.configure(self.restore | {"workers": self.restore["workers"] | workers})
        if self.random.random() < 0.5:
            self.target.process.send_signal(signal.SIGHUP)
        else:
            self.ask("reload")

    def scale(self) -> None:
        least = self.random.randint(1, 3)
        self.ask("scale", min=least, max=self.random.randint(max(2, least), 4))

    def look(self) -> None:
        op = self.random.choice(("status", "workers", "jobs", "gpus", "quarantine", "config", "ping"))
        keys = {"clear": "all"} if op == "quarantine" and self.random.random() < 0.5 else {}
        self.ask(op, **keys)
