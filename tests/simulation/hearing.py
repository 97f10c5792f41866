"""What one request is told, and whether the protocol allows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glmtts.protocol import events

from .rules import Broken, Rule, must


@dataclass
class Hearing:
    """One ``synthesize`` or ``wait``: what it has heard until now.

    ``joined``: it may have come in the middle of the job. ``streams``: audio events are wanted.
    """

    connection: int
    id: str
    text: str
    all_events: bool
    streams: bool
    joined: bool
    job: str = ""
    attempts: int = 0
    next_chunk: int | None = None
    lossy: bool = False
    ended: bool = False
    code: str = ""
    #: The output that it was told of.
    path: str = ""
    deadline_at: float | None = None
    #: Its deadline as the core has it, and how long its text takes on average.
    gives_up_s: float | None = None
    takes_s: float = 0.0
    #: Whether others may follow its job while it is made.
    followed: bool = False
    #: Whose it is, and whether its job survives the daemon.
    client: str = ""
    durable: bool = False
    #: Of a ``wait``: the job, and whether it is somebody else's.
    waits_for: str = ""
    stranger: bool = False
    #: Of a text in pieces: what was taken of it.
    said: str = ""
    heard: list[str] = field(default_factory=list)
    #: In which process its stream was made, where that makes a difference.
    made_by: bytes = b""

    def hear(self, event: Any, body: bytes | None, now: float) -> None:
        """One more event for this request."""
        name = type(event).__name__
        self.heard.append(name)
        must(Rule.ONE_END, not self.ended, self, "was told", name, "after its end")
        must(
            Rule.ORDER,
            self.all_events or isinstance(event, events.Done | events.Error),
            self,
            "asked for its end alone:",
            name,
        )
        self._same_job(event)
        hidden = isinstance(event, events.Error) and event.code in ("job_not_found", "shutting_down", "unavailable")
        must(Rule.OWN_AUDIO, not self.stranger or hidden, self, "hears a job of somebody else")
        match event:
            case events.Accepted():
                must(Rule.ORDER, len(self.heard) == 1, self, "was accepted late")
            case events.Queued():
                must(Rule.ORDER, not self.next_chunk, self, "waits again after audio")
            case events.Started():
                must(Rule.ORDER, self.joined or self.heard[0] == "Accepted", self, "started before it was accepted")
                must(Rule.ORDER, event.attempt > self.attempts, self, "attempts don't grow")
                self.attempts = event.attempt
            case events.Progress():
                must(Rule.ORDER, self.joined or self.attempts, self, "progressed before it started")
            case events.Audio():
                self._hear_audio(event, body)
            case events.Done():
                self._hear_done(event, body)
            case events.Error():
                self.ended, self.code = True, event.code
                if event.code == "deadline_exceeded" and self.gives_up_s is not None and not self.joined:
                    left_s = self.gives_up_s - now
                    must(Rule.ONE_END, left_s < 1.5 * self.takes_s, self, "is given up with", left_s, "s left")
                if self.deadline_at is not None and event.code != "slow_consumer" and not self.joined:
                    must(Rule.ONE_END, now <= self.deadline_at + 1e-6, self, "ended after its deadline")
            case _:
                raise Broken(Rule.ORDER, f"{self} was told {name}")

    def _same_job(self, event: Any) -> None:
        job = getattr(event, "job", None)
        if isinstance(job, str) and job:
            must(Rule.OWN_AUDIO, self.job in ("", job), self, "was told of", job)
            self.job = job

    def _own(self, body: bytes | None) -> None:
        must(Rule.OWN_AUDIO, body is not None, self, "was sent no body")
        must(
            Rule.OWN_AUDIO,
            bytes(body or b"").startswith(f"{self.job}|{self.text}|".encode()),
            self,
            "got another's audio",
            body,
        )

    def _hear_audio(self, event: events.Audio, body: bytes | None) -> None:
        must(Rule.OWN_AUDIO, self.streams, self, "did not ask for a stream")
        must(Rule.ORDER, self.joined or self.attempts, self, "heard audio before it started")
        if self.next_chunk is None:
            self.next_chunk = event.seq if self.joined else 0
        must(Rule.ORDER, self.lossy or event.seq == self.next_chunk, self, "misses chunks before", event.seq)
        self.next_chunk = event.seq + 1
        self._own(body)
        # Each chunk is a segment, and a stream goes on in another process only as it was.
        _, _, number, by = bytes(body or b"").rstrip(b".").split(b"|")
        must(Rule.ORDER, int(number) == event.seq + 1, self, "hears", number, "as its chunk", event.seq)
        must(Rule.ORDER, self.made_by in (b"", by), self, "hears a stream whose second half does not fit the first")
        self.made_by = by

    def _hear_done(self, event: events.Done, body: bytes | None) -> None:
        self.ended, self.code = True, "done"
        must(Rule.ORDER, self.joined or self.attempts or not self.all_events, self, "done before it started")
        must(Rule.ORDER, not self.lossy, self, "was not told that it missed a part")
        if isinstance(event.path, str):
            self.path = event.path
            must(Rule.ORDER, body is None, self, "got a file that was written")
        elif event.chunks:
            must(Rule.ORDER, body is None, self, "got a stream's audio twice")
            must(
                Rule.ORDER, self.next_chunk in (None, event.chunks) or not self.streams, self, "misses the last chunks"
            )
        else:
            self._own(body)


@dataclass
class Question:
    """A request that is answered once."""

    connection: int
    id: str
    answers: int = 0
    answer: Any = None

    def hear(self, event: Any, body: bytes | None, now: float) -> None:
        """The answer."""
        del body, now
        self.answer = event
        self.answers += 1
        must(Rule.ONE_END, self.answers == 1, self, "was answered twice:", event)
