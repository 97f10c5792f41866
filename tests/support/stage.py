"""A simulated machine whose workers speak in its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import worker as wire

from .core_world import MEMORY, World


class Stage:
    """A World whose workers speak in its time: a tenth of a second for each character, in segments of a second.

    ``slow`` is by how much the workers differ from that. A worker does what the wire says: it puts a job aside at the
    next border, goes on with it when it is told, and gives up what is cancelled.
    """

    PACE_S = 0.1

    def __init__(self, world: World, *, slow: float = 1.0, segment_s: float = 1.0) -> None:
        self.world = world
        self._slow, self._segment_s = slow, segment_s
        self._seen = len(world.done)
        self._job: dict[int, wire.SpeakJob | None] = {}
        self._aside: dict[int, list[wire.SpeakJob]] = {}
        self._suspend: dict[int, str] = {}
        self._cancelled: set[str] = set()
        self._segment: dict[str, int] = {}
        self._border: dict[int, float] = {}
        self.jobs: dict[str, wire.SpeakJob] = {}
        #: What happened, and when: ``(time, "begins" | "resumes" | "suspended" | "ends", text)``.
        self.log: list[tuple[float, str, str]] = []
        #: Seconds that were spoken of each text.
        self.spoken: dict[str, float] = {}

    def learn(self, *lengths: int) -> None:
        """Let the daemon see how long texts take: each is spoken once, alone."""
        for length in lengths:
            self.world.request(text="w" * length, durable=False)
            self.run(length * self.PACE_S * self._slow + 0.01)
        self.log.clear()
        self.spoken.clear()

    def run(self, seconds: float) -> None:
        """Let time pass, with everything that workers say in it."""
        world = self.world
        until = world.now + seconds
        while True:
            self._listen()
            borders = [at for incarnation, at in self._border.items() if self._job.get(incarnation) is not None]
            at = min(borders, default=until)
            due = world.machine.next_due
            if due is not None and due <= min(at, until):
                world.now = max(world.now, due)
                world.step(inputs.TimePassed())
            elif at <= until and borders:
                world.now = max(world.now, at)
                self._reach(next(s for s, t in self._border.items() if t == at and self._job.get(s) is not None))
            else:
                break
        world.now = until

    def _note(self, what: str, job: wire.SpeakJob) -> None:
        self.log.append((round(self.world.now, 3), what, job.text))

    def when(self, what: str, text: str) -> list[float]:
        """When something happened to a text."""
        return [at for at, happened, of in self.log if (happened, of) == (what, text)]

    def of(self, text: str) -> str:
        """The id of the job that speaks a text."""
        return next(id for id, job in self.jobs.items() if job.text == text)

    def _segments(self, job: wire.SpeakJob) -> tuple[int, float]:
        seconds = len(job.text) * self.PACE_S * self._slow
        count = max(1, round(seconds / self._segment_s))
        return count, seconds / count

    def _listen(self) -> None:
        while self._seen < len(self.world.done):
            effect = self.world.done[self._seen]
            self._seen += 1
            if isinstance(effect, effects.Tell):
                self._told(effect.incarnation, effect.message)

    def _told(self, incarnation: int, message: wire.SupervisorMessage) -> None:
        if isinstance(message, wire.SpeakJob):
            assert self._job.get(incarnation) is None, "one at a time"
            self.jobs[message.job] = message
            self._segment[message.job] = 0
            self._begin(incarnation, message, "begins")
        elif isinstance(message, wire.ResumeJob):
            assert self._job.get(incarnation) is None, "one at a time"
            job = next(job for job in self._aside[incarnation] if job.job == message.job)
            self._aside[incarnation].remove(job)
            self._begin(incarnation, job, "resumes")
        elif isinstance(message, wire.SuspendJob):
            self._suspend[incarnation] = message.job
        elif isinstance(message, wire.CancelJob):
            aside = [job for job in self._aside.get(incarnation, []) if job.job == message.job]
            if aside:
                self._aside[incarnation].remove(aside[0])
                self._say(incarnation, wire.Failed(job=message.job, code="cancelled", message="cancelled"))
            else:
                self._cancelled.add(message.job)

    def _begin(self, incarnation: int, job: wire.SpeakJob, what: str) -> None:
        self._job[incarnation] = job
        self._border[incarnation] = self.world.now + self._segments(job)[1]
        self._note(what, job)

    def _say(self, incarnation: int, message: wire.WorkerMessage, body: bytes | None = None) -> None:
        self.world.step(inputs.WorkerSaid(incarnation, message, body))

    def _reach(self, incarnation: int) -> None:
        """A worker has spoken a segment."""
        job = self._job[incarnation]
        assert job is not None
        count, segment_s = self._segments(job)
        suspend = self._suspend.get(incarnation) == job.job
        self.spoken[job.text] = self.spoken.get(job.text, 0.0) + segment_s
        self._segment[job.job] += 1
        number = self._segment[job.job]
        self._border[incarnation] = self.world.now + segment_s
        if job.job in self._cancelled:
            self._job[incarnation] = None
            self._say(incarnation, wire.Failed(job=job.job, code="cancelled", message="cancelled"))
            return
        if job.stream:
            self._say(incarnation, wire.AudioChunk(job=job.job, seq=number - 1), b"pcm")
        self._say(incarnation, wire.SegmentDone(job=job.job, segment=number, segments=count, audio_s=float(number)))
        if number == count:
            self._job[incarnation] = None
            self._suspend.pop(incarnation, None)
            self._note("ends", job)
            file = None if job.stream or job.result else b"RIFF"
            self._say(
                incarnation,
                wire.Finished(
                    job=job.job,
                    sample_rate=24_000,
                    audio_s=1.0,
                    synthesis_s=count * segment_s,
                    first_audio_s=0.1,
                    voice="tone",
                    sha256="0" * 64,
                    chunks=number if job.stream else 0,
                    bytes=len(file or b""),
                    path=job.output,
                    result=job.result,
                    memory=MEMORY,
                ),
                file,
            )
        elif suspend:
            del self._suspend[incarnation]
            self._job[incarnation] = None
            self._aside.setdefault(incarnation, []).append(job)
            self._note("suspended", job)
            self._say(incarnation, wire.Suspended(job=job.job, memory=MEMORY))


def stage(
    count: int = 1, *, slow: float = 1.0, segment_s: float = 1.0, learn: tuple[int, ...] = (10, 50), **sections: Any
) -> Stage:
    """A Stage whose workers are ready, and known to take 0.1 s for a character unless ``learn=()``."""
    world = World(count, **sections)
    for number in range(count):
        world.ready(f"w{number}")
    made = Stage(world, slow=slow, segment_s=segment_s)
    made.learn(*learn)
    return made


#: What the fixture ``make_stage`` hands out.
MakeStage: TypeAlias = Callable[..., Stage]
