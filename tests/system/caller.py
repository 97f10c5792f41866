"""One connection of a client that remembers all it asked for, and notes whatever it hears that it should not."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zmq

from ..process.conftest import FINAL, Event
from .speech import Speech

#: What may follow an event of a job; ``""`` is the beginning.
_NEXT = {
    "": {"accepted", "error"},
    "accepted": {"queued", "started", "error"},
    "queued": {"queued", "started", "error"},
    "started": {"queued", "started", "progress", "audio", "done", "error"},
    "progress": {"queued", "started", "progress", "audio", "done", "error"},
    # The fault engine makes the same bytes again: a stream goes on in another process.
    "audio": {"started", "progress", "audio", "done", "error"},
}


class Notes:
    """What all clients have seen: findings are what must not be, counts are for people."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()
        self.longest_s = 0.0

    def finding(self, text: str) -> None:
        with self._lock:
            self.findings.append(text)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def took(self, seconds: float) -> None:
        with self._lock:
            self.longest_s = max(self.longest_s, seconds)


@dataclass(slots=True)
class Asked:
    """A request, and what came of it."""

    id: str
    op: str
    at: float
    speech: Speech | None = None
    final_only: bool = False
    cancelled: bool = False
    job: str = ""
    names: list[str] = field(default_factory=list)
    attempts: int = 0
    chunks: list[bytes] = field(default_factory=list)
    last: Event | None = None

    def describe(self) -> str:
        about = f"{self.op} {self.id!r} job {self.job or '-'}"
        if self.speech:
            about += f" ({self.speech.options}, stream={self.speech.stream})"
        return f"{about}, heard {_brief(self.names)}, asked {time.monotonic() - self.at:.1f} s ago"


class Caller:
    """A DEALER on the requests socket. ``name`` is part of every id, so that an answer to another client is noticed."""

    _numbers = itertools.count(1)

    def __init__(self, endpoint: str, name: str, notes: Notes) -> None:
        self.name = f"{name}.{next(self._numbers)}"
        self.notes = notes
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.asked: dict[str, Asked] = {}
        #: Answers without an id that are still to come: those to unreadable messages.
        self.anonymous = 0
        self._ids = itertools.count(1)

    def close(self) -> None:
        self.socket.close(0)

    def ask(self, op: str, **keys: Any) -> Asked:
        """Send a request."""
        asked = Asked(f"{self.name}.{next(self._ids)}", op, time.monotonic())
        self.asked[asked.id] = asked
        self.socket.send(msgpack.packb({"v": 1, "op": op, "id": asked.id} | keys))
        return asked

    def speak(self, speech: Speech, **keys: Any) -> Asked:
        """Ask for a speech, to be checked when it comes."""
        asked = self.ask("synthesize", **speech.request(), **keys)
        asked.speech, asked.final_only = speech, keys.get("events") == "final"
        return asked

    def send_nonsense(self, *frames: bytes) -> None:
        """Send what has no id that could be read."""
        self.anonymous += 1
        self.socket.send_multipart(frames)

    def listen(self, until: Callable[[], object], patience_s: float) -> bool:
        """Hear what comes until it is so; whether it was, in time."""
        deadline = time.monotonic() + patience_s
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self.socket.poll(int(left * 1e3) + 1):
                self._hear(self.socket.recv_multipart())
        return True

    @property
    def open(self) -> list[Asked]:
        """Requests whose last event has not come."""
        return [asked for asked in self.asked.values() if asked.last is None]

    def _hear(self, frames: list[bytes]) -> None:
        event: Event = msgpack.unpackb(frames[0])
        body = frames[1] if len(frames) == 2 else b""
        id, name = event["id"], event["event"]
        if not id:
            self.anonymous -= 1
            if self.anonymous < 0 or event.get("code") not in ("bad_request", "too_large"):
                self._wrong(None, f"an answer without an id: {event}")
            return
        asked = self.asked.get(id)
        if asked is None:
            self._wrong(None, f"an event of a request that is not its own: {event}")
        elif asked.last is not None:
            self._wrong(asked, f"an event after the last: {event} after {asked.last}")
        else:
            if asked.speech and not asked.final_only:
                self._follow(asked, event, body)
            asked.names.append(name)
            if name in FINAL:
                asked.last = event
                self.notes.took(time.monotonic() - asked.at)
                if asked.speech:
                    self._judge(asked, asked.speech, event, body)

    def _follow(self, asked: Asked, event: Event, body: bytes) -> None:
        """Check the order of a job's events."""
        name, before = event["event"], asked.names[-1] if asked.names else ""
        asked.job = event.get("job", asked.job)
        if name not in _NEXT[before]:
            self._wrong(asked, f"{name} after {before or 'nothing'}: {event}")
        if name == "queued" and asked.chunks:
            self._wrong(asked, f"queued again after {len(asked.chunks)} chunks: {event}")
        if name == "started":
            asked.attempts += 1
            if event["attempt"] != asked.attempts:
                self._wrong(asked, f"attempt {event['attempt']} where {asked.attempts} was expected")
        elif name == "audio":
            if event["seq"] != len(asked.chunks):
                self._wrong(asked, f"chunk {event['seq']} where {len(asked.chunks)} was expected")
            asked.chunks.append(body)

    def _judge(self, asked: Asked, speech: Speech, event: Event, body: bytes) -> None:
        """Check how a job ended: whose audio it is, and whether that error can be."""
        heard = b"".join(asked.chunks) if speech.stream and not asked.final_only else body
        if event["event"] == "done":
            self.notes.count(f"{speech.fault}: done")
            if not speech.may_succeed:
                self._wrong(asked, f"{speech.fault} ended in audio: {event}")
            expected = speech.audio()
            digest = hashlib.sha256(expected).hexdigest()
            if heard != expected or event["sha256"] != digest:
                self._wrong(asked, f"not its audio: {len(heard)} of {len(expected)} bytes, {event} instead of {digest}")
            if not asked.final_only and event["attempts"] != asked.attempts:
                self._wrong(asked, f"{event['attempts']} attempts, {asked.attempts} were told")
            return
        code = event["code"]
        self.notes.count(f"{speech.fault}: {code}")
        if code == "unavailable":
            self.notes.count(f"unavailable: {event['message'][:90]}")
        if code not in speech.ends and not (asked.cancelled and code == "cancelled"):
            self._wrong(asked, f"an end that it can't have: {event}")
        if heard and not speech.audio().startswith(heard):
            self._wrong(asked, f"not its audio: {len(heard)} bytes before {event}")

    def _wrong(self, asked: Asked | None, what: str) -> None:
        self.notes.finding(f"{self.name}: {what}" + (f"\n    {asked.describe()}" if asked else ""))


def _brief(names: list[str]) -> str:
    """``accepted started 3 x audio``."""
    groups = [(name, len(list(group))) for name, group in itertools.groupby(names)]
    return " ".join(name if count == 1 else f"{count} x {name}" for name, count in groups) or "nothing"
