"""A real daemon with real workers, and clients as a stranger would write them: pyzmq, msgpack and docs/protocol.md."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from ..fake_gpu.fake_gpu import FakeGpus

PATIENCE_S = 20.0
Event = dict[str, Any]

#: What differs from the defaults, so that no test waits for long and no test is limited by another's jobs.
QUICK: dict[str, Any] = {
    "engine": {"name": "fault", "warmup_text": "a"},
    "workers": {"gpus": "none", "max": 1, "stop_timeout_s": 1.0, "start_timeout_s": 20.0},
    "queue": {"max_waiting": 100, "max_share": 1.0},
    "limits": {"rate": ""},
}

#: Events that answer a request for good.
FINAL = {"done", "error", "result", "pong", "info", "voices", "job", "jobs", "usage"}


class Peer:
    """One socket of a client, DEALER or REQ."""

    def __init__(self, endpoint: str, kind: int = zmq.DEALER, **options: Any) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.socket.connect(endpoint)
        self._numbers = itertools.count(1)
        self._waiting: dict[str, list[tuple[Event, bytes | None]]] = {}

    def close(self) -> None:
        self.socket.close(0)

    def send(self, op: str, body: bytes | None = None, **keys: Any) -> str:
        """Send a request, and return its id."""
        request = {"v": 1, "op": op, "id": f"r{next(self._numbers)}"} | keys
        frames = [msgpack.packb(request, unicode_errors="surrogatepass")]
        self.socket.send_multipart(frames if body is None else [*frames, body])
        return str(request["id"])

    def receive(self, patience_s: float = PATIENCE_S) -> tuple[Event, bytes | None]:
        """The next message, whatever it belongs to."""
        if not self.socket.poll(int(patience_s * 1e3)):
            raise AssertionError(f"no answer within {patience_s} s")
        header, *body = self.socket.recv_multipart()
        event = msgpack.unpackb(header)
        assert event["v"] == 1 and len(body) <= 1, event
        return event, body[0] if body else None

    def next(self, id: str, patience_s: float = PATIENCE_S) -> tuple[Event, bytes | None]:
        """The next event of this request; those of others are kept for when they are asked for."""
        deadline = time.monotonic() + patience_s
        while not self._waiting.get(id):
            event, body = self.receive(max(0.0, deadline - time.monotonic()))
            assert event["id"], f"answered without an id: {event}"
            self._waiting.setdefault(event["id"], []).append((event, body))
        return self._waiting[id].pop(0)

    def until(self, id: str, *names: str, patience_s: float = PATIENCE_S) -> Event:
        """The request's next event of one of these names; what comes before it is dropped."""
        deadline = time.monotonic() + patience_s
        while True:
            event, _ = self.next(id, max(0.0, deadline - time.monotonic()))
            if event["event"] in names:
                return event
            assert event["event"] not in FINAL, event

    def all(self, id: str, patience_s: float = PATIENCE_S) -> tuple[list[Event], bytes]:
        """Every event of a request up to its last, and all of their bodies in a row."""
        events: list[Event] = []
        audio = []
        deadline = time.monotonic() + patience_s
        while not events or events[-1]["event"] not in FINAL:
            event, body = self.next(id, max(0.0, deadline - time.monotonic()))
            events.append(event)
            audio.append(body or b"")
        return events, b"".join(audio)

    def ask(self, op: str, body: bytes | None = None, **keys: Any) -> Event:
        """Send a request and return its last event."""
        return self.all(self.send(op, body, **keys))[0][-1]

    def speak(self, text: str = "hello", body: bytes | None = None, **keys: Any) -> tuple[Event, bytes]:
        """Have a text spoken: ``done`` and the audio."""
        events, audio = self.all(self.send("synthesize", body, text=text, **keys))
        assert events[-1]["event"] == "done", events[-1]
        return events[-1], audio

    def refused(self, op: str, body: bytes | None = None, **keys: Any) -> Event:
        """Send what must end in an error, and return it."""
        error = self.ask(op, body, **keys)
        assert error["event"] == "error", error
        assert isinstance(error["retryable"], bool) and error["message"].strip(), error
        return error


class Log(str):
    """A daemon's log. What is looked for in it may come a moment later: a thread writes it, some lines at a time."""

    file: Path

    def __contains__(self, words: object) -> bool:
        deadline = time.monotonic() + 0.3
        found = super().__contains__(words)  # type: ignore[operator]  # any object, as `in` may ask; str says no itself
        while not found and time.monotonic() < deadline:
            time.sleep(0.01)
            found = str(words) in self.file.read_text(errors="replace")
        return found


class Daemon:
    """A daemon on a runtime folder of its own."""

    #: What Python runs.
    program: Sequence[str] = ("-m", "glmtts.daemon.supervisor")

    def __init__(self, config: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        # Not pytest's folder: the path of a socket has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="glmtts-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.runtime = self.folder / "run"
        self.state = self.folder / "state"
        self.file = self.folder / "glmtts.toml"
        self.log_file = self.folder / "log"
        self.endpoint = f"ipc://{self.runtime}/glmtts.sock"
        self.control_endpoint = f"ipc://{self.runtime}/control.sock"
        self.events_endpoint = f"ipc://{self.runtime}/events.sock"
        self.configure(config)
        self.environment = environment or {}
        self._peers: list[Peer] = []
        self.process = self.launch()

    # --- the process

    def configure(self, config: dict[str, Any]) -> None:
        """Write the configuration file; a running daemon reads it at the next reload."""
        self.file.write_text(toml(merged(QUICK, config)))

    def launch(self, through: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Start a daemon here, by the command ``through``; another one may be running. ``options`` are Popen's."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GLMTTS_", "STATE_", "RUNTIME_"))}
        environment |= {
            "GLMTTS_RUNTIME_DIR": str(self.runtime),
            "STATE_DIRECTORY": str(self.state),
            "XDG_STATE_HOME": str(self.state),
        } | self.environment
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*through, sys.executable, *self.program, "--config", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                **options,
            )

    def restart(self) -> None:
        """Start the daemon again after its end."""
        assert self.process.poll() is not None
        self.process = self.launch()
        self.until_ready()

    def until_ready(self, workers: int | None = None, patience_s: float = PATIENCE_S) -> None:
        """Wait until this many workers are ready; without a number, all of them."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with status {self.process.returncode}")
            counts = self.status()["workers"]
            return bool(counts["ready"] + counts["busy"] >= (workers or counts["total"] or 1))

        self.until(ready, "workers are ready", patience_s)

    def until(self, condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Ask until it is so: for what the daemon has no event for."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience_s} s: {what}; the daemon's log:\n{self.log()[-4000:]}")
            time.sleep(0.01)

    def control_is_open(self) -> bool:
        """Whether the daemon answers operators."""
        if not Path(self.control_endpoint.removeprefix("ipc://")).exists():
            return False
        with contextlib.closing(Peer(self.control_endpoint)) as peer:
            id = peer.send("ping")
            try:
                return bool(peer.next(id, 1.0)[0]["event"] == "pong")
            except AssertionError:
                return False

    def stop(self) -> None:
        """End it by SIGTERM, as a service manager does; nothing of it may be left."""
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0, self.log()[-4000:]
        self.until_nothing_is_left()

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def until_nothing_is_left(self, patience_s: float = PATIENCE_S) -> None:
        self.until(lambda: not self.processes(), "every process of the daemon is gone", patience_s)

    def processes(self) -> list[int]:
        """Every process that has this daemon's runtime folder in its environment: it, its workers, their children."""
        mark = f"GLMTTS_RUNTIME_DIR={self.runtime}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def clear_away(self) -> None:
        """End what is left and remove every trace, whatever the test has found."""
        for peer in self._peers:
            peer.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Shown by pytest if the test has failed.
        print(self.log()[-20_000:])
        shutil.rmtree(self.folder)

    def log(self) -> Log:
        """What it has logged."""
        log = Log(self.log_file.read_text(errors="replace"))
        log.file = self.log_file
        return log

    def until_logged(self, *texts: str) -> None:
        """Wait until each is in the log: a living daemon writes it from a thread."""
        for text in texts:
            self.until(lambda: text in self.log(), f"{text!r} is logged")  # noqa: B023

    @property
    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    # --- its sockets

    def client(self, kind: int = zmq.DEALER, **options: Any) -> Peer:
        """A socket on the requests endpoint; closed with the daemon at the latest."""
        self._peers.append(Peer(self.endpoint, kind, **options))
        return self._peers[-1]

    def operator(self) -> Peer:
        """A socket on the control endpoint."""
        self._peers.append(Peer(self.control_endpoint))
        return self._peers[-1]

    def control(self, op: str, body: bytes | None = None, **keys: Any) -> Event:
        """One operation, answered by ``result`` or ``error``."""
        with contextlib.closing(Peer(self.control_endpoint)) as peer:
            return peer.ask(op, body, **keys)

    def status(self) -> Event:
        return self.control("status")

    def workers(self) -> list[Event]:
        return list(self.control("workers")["workers"])

    def gpus(self) -> list[Event]:
        return list(self.control("gpus")["gpus"])

    def worker_of(self, started: Event) -> int:
        """The pid of the worker that a ``started`` event names."""
        return int(next(w["pid"] for w in self.workers() if w["name"] == started["worker"]))

    @contextlib.contextmanager
    def workers_stand_still(self) -> Iterator[None]:
        """The workers do nothing in the block: a job that they have, or get, stays where it is."""
        pids = [worker["pid"] for worker in self.workers() if worker["pid"]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def still_serves(self, grows_mib: float = 64.0) -> Iterator[None]:
        """What happens in the block may end no service and take no memory for good."""
        before = self.rss_mib
        yield
        with contextlib.closing(Peer(self.endpoint)) as peer:
            assert peer.ask("ping")["event"] == "pong"
            _, audio = peer.speak("still here")
            assert audio[:4] == b"RIFF"
        assert self.rss_mib < before + grows_mib
        assert self.status()["internal_errors"] == 0, self.log()[-4000:]


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Be user 65534: the kernel notes who connects, when it does. Skips the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("only root can switch users")
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


#: Starts daemons that end with the test: ``start(queue={...})``.
Start = Callable[..., Daemon]
MakeGpus = Callable[..., FakeGpus]


def toml(config: dict[str, Any], path: str = "") -> str:
    """TOML text of nested sections."""
    own = [f"{key} = {json.dumps(value)}\n" for key, value in config.items() if not isinstance(value, dict)]
    sections = [toml(value, f"{path}{key}.") for key, value in config.items() if isinstance(value, dict)]
    return (f"[{path[:-1]}]\n" if path else "") + "".join(own) + "".join(sections)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = base | changes
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            both[key] = merged(base[key], changes[key])
    return both


@contextlib.contextmanager
def daemons() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; at the end those that still run are stopped, and every one must have ended cleanly."""
    started: list[Daemon] = []

    def start(*, wait: bool = True, environment: dict[str, str] | None = None, **config: Any) -> Daemon:
        daemon = Daemon(config, environment)
        started.append(daemon)
        if wait:
            daemon.until_ready()
        return daemon

    try:
        yield start
        for daemon in started:
            if daemon.process.poll() is None:
                daemon.stop()
            # As a plain string: after the daemon's end no line comes later.
            assert "internal error" not in str(daemon.log()), daemon.log()[-8000:]
    finally:
        for daemon in started:
            daemon.clear_away()


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons for one test: ``start(workers={"max": 2}, ...)``, in the shape of the configuration."""
    with daemons() as begin:
        yield begin


@pytest.fixture(scope="module")
def start_shared() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that a module's tests share."""
    with daemons() as begin:
        yield begin


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A DEALER on the module's daemon."""
    with contextlib.closing(Peer(request.getfixturevalue("daemon").endpoint)) as peer:
        yield peer
