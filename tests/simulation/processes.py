"""Worker processes as the simulation plays them: they load, speak, and go wrong in every way that a text asks for."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from glmtts.daemon.core import inputs
from glmtts.protocol import worker as wire

MEMORY = wire.Memory(rss=100 << 20)

#: What the first word of a text makes of its job, and how often in a thousand.
PLANS = {
    "ok": 780,
    "raise": 30,
    "exit": 20,
    "exit_late": 30,
    "once": 30,
    "oom": 15,
    "hang": 15,
    "garbage": 15,
    "stray": 10,
    "stray_fatal": 10,
    "nofile": 10,
    "sigterm": 10,
    "last": 25,
}


def ready(slots: int) -> wire.Ready:
    """What a process says when it is ready."""
    return wire.Ready(
        engine="fault",
        engine_version="1",
        sample_rates=[24_000],
        voices=[],
        default_voice="",
        clones_voices=False,
        slots=slots,
        load_s=0.1,
        warmup_s=0.1,
        memory=MEMORY,
    )


class Place(Protocol):
    """What a process needs of its world."""

    now: float
    random: random.Random
    sick: bool
    slots: int
    synthesis_s: float
    attempts: dict[str, int]

    def after(self, delay: float, action: Callable[[], None]) -> None: ...
    def happen(self, event: inputs.Input) -> None: ...
    def gone(self, process: Process, returncode: int) -> None: ...


class Process:
    """One process, from its spawn to its end."""

    def __init__(self, world: Place, spawn: int, name: str) -> None:
        self.world = world
        self.spawn = spawn
        self.name = name
        self.alive = True
        self.deaf = False
        self.loaded = False
        self._delivered_at = 0.0
        self.told_at = 0.0
        self._jobs: deque[wire.Job] = deque()
        self._job: wire.Job | None = None
        self._cancelled: set[str] = set()
        self._stop = False
        self._begin()

    # --- its life

    def _begin(self) -> None:
        rng = self.world.random
        plan = rng.choices(["ok", "crash", "hang", "garbage", "early", "no_process"], [90, 4, 1, 1, 1, 3])[0]
        if self.world.sick and plan == "ok":
            plan = rng.choice(["crash", "crash", "hang", "no_process"])
        if plan == "no_process":
            self.alive = False
            self.world.after(0.0, lambda: self.world.happen(inputs.SpawnFailed(self.spawn, "no room for a process")))
            return
        self.world.after(0.0, lambda: self.world.happen(inputs.Spawned(self.spawn, 10_000 + self.spawn)))
        took = rng.uniform(0.05, 1.5)
        if plan == "hang":
            self.deaf = True
        elif plan == "crash":
            self.world.after(took, lambda: self.die(3))
        else:
            self.world.after(took, lambda: self._loaded(plan))

    def _loaded(self, plan: str) -> None:
        if not self.alive:
            return
        self.say(wire.Hello(token="t", pid=1, started=1, python="3"))
        if plan == "garbage":
            self._deliver(inputs.WorkerGarbled(self.spawn, "bytes that mean nothing"))
        elif plan == "early":
            self.say(wire.Trimmed(memory=MEMORY))
        else:
            self.loaded = True
            self.say(ready(self.world.slots))

    def die(self, returncode: int) -> None:
        """End; what was said is mostly heard before, and now and then after it is known."""
        if self.alive:
            self.alive = False
            delay = max(0.0, self._delivered_at - self.world.now) if self.world.random.random() < 0.9 else 0.0
            self.world.after(delay + self.world.random.uniform(0, 0.01), lambda: self.world.gone(self, returncode))

    def signal(self, name: str) -> None:
        """SIGTERM or SIGKILL."""
        delay = self.world.random.uniform(0, 0.02)
        if name == "kill":
            self.world.after(delay, lambda: self.die(-9))
        elif not self.deaf:
            self.world.after(delay, lambda: self.die(-15))

    # --- messages

    def say(self, message: wire.WorkerMessage, body: bytes | None = None) -> None:
        self._deliver(inputs.WorkerSaid(self.spawn, message, body))

    def _deliver(self, event: inputs.Input) -> None:
        at = max(self._delivered_at, self.world.now + self.world.random.uniform(0, 0.005))
        self._delivered_at = at
        self.world.after(at - self.world.now, lambda: self.world.happen(event))

    def told(self, message: wire.SupervisorMessage) -> None:
        """A message from the supervisor; nobody reads it in a dead process, nor before the model is loaded."""
        if not self.alive or not self.loaded or self.deaf:
            return
        match message:
            case wire.Job():
                self._jobs.append(message)
                self._next()
            case wire.CancelJob():
                if message.job in {job.job for job in self._jobs} or (self._job and self._job.job == message.job):
                    self._cancelled.add(message.job)
            case wire.Trim():
                self.say(wire.Trimmed(memory=MEMORY))
            case wire.StopWorker():
                self._stop = True
                self._next()

    # --- its work

    def _next(self) -> None:
        if self._job is not None or not self.alive:
            return
        if self._jobs:
            self._job = self._jobs.popleft()
            job = self._job
            self.world.attempts[job.text] = self.world.attempts.get(job.text, 0) + 1
            segments = self.world.random.randint(1, 3)
            self.world.after(self.world.random.expovariate(12), lambda: self._segment(job, 1, segments))
        elif self._stop and self.world.random.random() < 0.95:
            self.say(wire.Bye(reason="asked to"))
            self.die(0)

    def _segment(self, job: wire.Job, number: int, segments: int) -> None:
        if not self.alive or self.deaf:
            return
        if job.job in self._cancelled:
            self._ended(wire.Failed(job=job.job, code="cancelled", message="cancelled"))
        elif not self._go_wrong(job, number, segments):
            self.say(wire.Beat(job=job.job, done=number))
            self.say(wire.SegmentDone(job=job.job, segment=number, segments=segments, audio_s=0.1 * number))
            if job.stream:
                self.say(wire.AudioChunk(job=job.job, seq=number - 1), audio(job, number))
            if number < segments:
                delay = self.world.random.expovariate(12)
                self.world.after(delay, lambda: self._segment(job, number + 1, segments))
            else:
                self._finish(job, segments)

    def _go_wrong(self, job: wire.Job, number: int, segments: int) -> bool:
        plan = job.text.split()[0]
        match plan:
            case "raise":
                self._ended(wire.Failed(job=job.job, code="synthesis_failed", message="its own words"))
            case "exit":
                self.die(self.world.random.choice([3, -11, -6]))
            case "exit_late" if number == segments:
                self.die(-11)
            case "once" if self.world.attempts[job.text] == 1:
                self.die(-11)
            case "oom" | "sigterm":
                code = "out_of_memory" if plan == "oom" else "cancelled"
                self.say(wire.Failed(job=job.job, code=code, message=plan, fatal=True))
                self.die(70)
            case "hang":
                self.deaf = True
            case "garbage":
                self._deliver(inputs.WorkerGarbled(self.spawn, "a frame of noise"))
            case "stray":
                self.say(wire.Beat(job="nobody-1", done=1))
            case "stray_fatal":
                self.say(wire.Failed(job="nobody-1", code="out_of_memory", message="of what?", fatal=True))
            case _:
                return False
        return True

    def _finish(self, job: wire.Job, segments: int) -> None:
        plan = job.text.split()[0]
        no_body = job.stream or job.output is not None or plan == "nofile"
        body = None if no_body else audio(job, 0)
        self._ended(
            wire.Finished(
                job=job.job,
                sample_rate=24_000,
                audio_s=0.1 * segments,
                synthesis_s=self.world.synthesis_s,
                first_audio_s=0.05,
                voice="v",
                sha256="0" * 64,
                chunks=segments if job.stream else 0,
                bytes=len(body or b""),
                path=None if plan == "nofile" else job.output,
                memory=MEMORY,
            ),
            body,
        )
        if plan == "last":
            self.die(-11)

    def _ended(self, message: wire.WorkerMessage, body: bytes | None = None) -> None:
        self.say(message, body)
        self._job = None
        self._next()


def audio(job: wire.Job, number: int) -> bytes:
    """Audio that says whose it is."""
    return f"{job.job}|{job.text}|{number}".encode().ljust(20_000 if number == 0 else 100, b".")


def plan(rng: random.Random) -> str:
    """How a job will go."""
    return rng.choices(list(PLANS), list(PLANS.values()))[0]
