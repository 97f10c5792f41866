"""Daemons that take time for speech, many users behind one socket, and what each of their jobs went through."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import zmq
from daemon_under_test import Daemon
from load import ask, call, refuse_error
from processes import NotMeasured

#: Seconds that the fault engine speaks for each character.
AUDIO_S = 0.06


def config(engine: str, *, workers: int = 1, **queue: Any) -> str:
    """``workers`` workers, no rate, and this user as a gateway who may speak for any number of others."""
    user = pwd.getpwuid(os.getuid()).pw_name
    lines = [f"{key} = {str(value).lower()}" for key, value in queue.items()]
    return "\n".join(
        [
            f'[engine]\nname = "{engine}"',
            f'[workers]\ngpus = "none"\nmin = {workers}\nmax = {workers}',
            f'[limits]\nrate = ""\nsend_buffer_mib = 1024\ngateways = ["{user}"]',
            "[queue]",
            *lines,
            "",
        ]
    )


@dataclass(slots=True)
class Spoken:
    """One job, on the client's clock."""

    client: str
    asked_at: float
    estimated_s: float | None = None
    position: int = 0
    done_at: float = 0.0
    waited_s: float = 0.0
    synthesis_s: float = 0.0
    audio_s: float = 0.0
    note: dict[str, Any] = field(default_factory=dict)


class Speakers:
    """A daemon, and everybody who asks something of it, on one connection."""

    def __init__(self, stack: ExitStack, folder: Path, name: str, text: str, workers: int = 1) -> None:
        self.daemon = Daemon(stack, folder, name, text)
        self.socket = self.daemon.client()
        self.outstanding: dict[str, Spoken] = {}
        self.done: list[Spoken] = []
        self.refused = 0
        self._asked = 0
        operator = self.daemon.operator()
        self.daemon.child.wait_until(lambda: _ready(call(operator, {"op": "workers", "id": "w"})) == workers, "workers")

    def ask(self, client: str, request: dict[str, Any], **note: Any) -> Spoken:
        """Ask for speech on behalf of a client."""
        self._asked += 1
        id = f"{self._asked:07d}"
        spoken = self.outstanding[id] = Spoken(client, time.perf_counter(), note=note)
        ask(self.socket, {"op": "synthesize", "id": id, "on_behalf_of": client, **request})
        return spoken

    def receive(self) -> list[Spoken]:
        """The jobs that have ended since the last time; refused ones are counted, and are no jobs."""
        ended = []
        while True:
            try:
                header = self.socket.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return ended
            event = msgpack.unpackb(header)
            spoken = self.outstanding[event["id"]]
            if event["event"] == "accepted":
                spoken.estimated_s = event.get("estimated_wait_s")
                spoken.position = event["position"]
            elif event["event"] == "error" and event["code"] == "queue_full":
                self.refused += 1
                del self.outstanding[event["id"]]
            elif refuse_error(event)["event"] == "done":
                del self.outstanding[event["id"]]
                spoken.done_at = time.perf_counter()
                spoken.waited_s, spoken.synthesis_s = event["waited_s"], event["synthesis_s"]
                spoken.audio_s = event["audio_s"]
                self.done.append(spoken)
                ended.append(spoken)


def _ready(answer: dict[str, Any]) -> int:
    return sum(worker["state"] == "ready" for worker in answer["workers"])


class Together:
    """Waits for the events of several daemons at once."""

    def __init__(self, all_of: Iterable[Speakers]) -> None:
        self._poller = zmq.Poller()
        self._of: dict[Any, Speakers] = {}
        for speakers in all_of:
            self._poller.register(speakers.socket, zmq.POLLIN)
            self._of[speakers.socket] = speakers

    def wait(self, until: float) -> list[tuple[Speakers, Spoken]]:
        """What has ended, not waiting for longer than ``until``."""
        timeout_ms = max(0, round((until - time.perf_counter()) * 1000))
        found = []
        for socket, _ in self._poller.poll(timeout_ms):
            found += [(self._of[socket], spoken) for spoken in self._of[socket].receive()]
        return found


def drain(speakers: Speakers, timeout_s: float) -> None:
    """Wait until everything that was asked for has ended."""
    together, until = Together([speakers]), time.perf_counter() + timeout_s
    while speakers.outstanding:
        if time.perf_counter() > until:
            raise NotMeasured(f"{len(speakers.outstanding)} jobs have not ended within {timeout_s:g} s")
        together.wait(until)
