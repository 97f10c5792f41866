"""Worker processes as the simulation plays them: they load, speak, and go wrong in every way that a text asks for."""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import worker as wire

from .accidents import FATAL, KILLING
from .engine import Engine, ready
from .place import Place
from .process_memory import Memory
from .recorder import Recorder
from .rules import Rule, must
from .texts import SEGMENT_S, WIRE_S, audio, name_of, pace, segments_of


class Process:
    """One process, from its spawn to its end."""

    def __init__(self, world: Place, effect: effects.Spawn) -> None:
        self.world = world
        self.incarnation = effect.incarnation
        self.name = effect.name
        self.pid = world.pid()
        self.gpu = world.hardware.gpus[effect.gpu] if effect.gpu is not None else None
        self.index = effect.gpu
        self.slots = min(world.scene.slots, effect.slots or world.scene.slots)
        self.alive = True
        self.deaf = False
        self.loaded = False
        self.told_at = 0.0
        #: Until when it stands still, while its daemon does not; and whether it ever did.
        self.frozen_until = 0.0
        self.stood_still = False
        #: Until then nothing ends it.
        self.uninterruptible = False
        #: Texts of all that it was given, received or not, and whose end the core has not heard.
        self.has: dict[str, str] = {}
        self.memory = Memory(world, self.pid, self.gpu, effect.vram_share)
        self._delivered_at = 0.0
        self._jobs: deque[wire.SpeakJob] = deque()
        #: What it works on: as many as it has slots.
        self._at_work: dict[str, wire.SpeakJob] = {}
        self._engine = Engine(world)
        #: What it has put aside: the job, and with which of how many segments it goes on.
        self.aside: dict[str, tuple[wire.SpeakJob, int, int]] = {}
        self._to_suspend: set[str] = set()
        #: The segment that each job at work is in.
        self._under_way: dict[str, tuple[int, int, object]] = {}
        self._resumed: set[str] = set()
        self._cancelled: set[str] = set()
        there = world.scene.recorder and self.slots > 1
        self.recorder = Recorder(f"{world.seed} {self.incarnation}", self._at_work, self.has, there=there)
        #: Pieces of text that came for each job, and those whose text is complete.
        self._texts: dict[str, int] = {}
        self._complete: set[str] = set()
        self._stop = False
        #: Units of each job at work, as it said last.
        self._done: dict[str, int] = {}
        self._begin()

    # --- its life

    def _begin(self) -> None:
        rng, world = self.world.random, self.world
        plan = "ok"
        if "bad_starts" not in world.without and rng.random() < world.scene.violence:
            plan = rng.choices(["ok", "crash", "hang", "garbage", "early", "no_process"], [90, 4, 1, 1, 1, 3])[0]
        if world.sick and plan == "ok":
            plan = rng.choice(["crash", "crash", "hang", "no_process"])
        if plan == "no_process":
            self.alive = False
            world.later(0.0, lambda: world.happen(inputs.SpawnFailed(self.incarnation, "no room for a process")))
            return
        world.later(0.0, lambda: world.happen(inputs.Spawned(self.incarnation, self.pid)))
        took = rng.uniform(0.05, 1.5)
        scene = world.scene
        self.memory.rss = scene.rss // 10
        world.later(0.3 * took, lambda: self._grow(scene.context), self)
        world.later(0.6 * took, lambda: self._grow(scene.context + self.memory.load // 2), self)
        if plan == "hang":
            self.deaf = True
        elif plan == "crash":
            world.later(took, lambda: self.die(3), self)
        else:
            world.later(took, lambda: self._loaded(plan), self)

    def _loaded(self, plan: str) -> None:
        if not self._grow(self.world.scene.context + self.memory.load):
            return
        self.memory.rss = self.world.scene.rss
        self.say(wire.Hello(token="t", pid=1, started=1, python="3"))
        if plan == "garbage":
            self._deliver(inputs.WorkerGarbled(self.incarnation, "bytes that mean nothing"))
        elif plan == "early":
            self.say(wire.Trimmed(memory=self.memory.report()))
        else:
            self.loaded = True
            self.say(ready(self.slots, self.memory.report(), repeats=self.world.scene.repeats))

    def die(self, returncode: int, *, oom_killed: bool = False) -> None:
        """End; what was said is mostly heard before, and now and then after it is known."""
        if self.alive:
            self.recorder.freeze()
            self.alive = False
            self.memory.leave()
            delay = max(0.0, self._delivered_at - self.world.now) if self.world.random.random() < 0.9 else 0.0
            delay += self.world.random.uniform(0, 0.01)
            self.world.later(delay, lambda: self.world.gone(self, returncode, oom_killed=oom_killed))

    def orphaned(self) -> None:
        """The daemon has ended, and nobody hears of this process any more."""
        if self.alive:
            self.alive = False
            self.memory.leave()

    def signal(self, name: str) -> None:
        """SIGTERM or SIGKILL."""
        rng = self.world.random
        delay = rng.uniform(0, 0.02)
        if self.uninterruptible:
            return
        if rng.random() < self.world.scene.stuck:
            self.uninterruptible = self.deaf = True
            self.world.later(rng.choice([0.7, 5.0, 30.0]) * rng.random(), self._wake_up)
        elif name == "kill":
            self.world.later(delay, lambda: self.die(-9))
        elif not self.deaf:
            self.world.later(delay, lambda: self.die(-15), self)

    def _wake_up(self) -> None:
        """The driver's call returned: what was asked of the process happens now."""
        self.uninterruptible = False
        self.die(-9)

    @property
    def healthy(self) -> bool:
        """Whether it works, and on nothing that will end it."""
        return self.alive and not self.deaf and not any(text.split()[0] in KILLING for text in self.has.values())

    def freeze(self, seconds: float) -> None:
        """Stand still, as after a SIGSTOP."""
        self.frozen_until, self.stood_still = self.world.now + seconds, True

    def may_blame(self, text: str) -> bool:
        """Whether its end may count against a text: it was named, or had the process to itself."""
        if self.slots == 1 or text in self.recorder.named:
            return text in self.has.values()
        others = (other for id, other in self.has.items() if id not in self.aside)
        return text in self.has.values() and all(other == text for other in others)

    @property
    def silent(self) -> bool:
        """Whether it has given a reason to be taken for hung."""
        return not self.healthy or self.stood_still or self.uninterruptible

    # --- its memory

    @property
    def rss(self) -> int:
        """Bytes of its host."""
        return self.memory.rss

    def _grow(self, size: int) -> bool:
        """Hold so much; where that does not fit, the process dies of it."""
        if not self.alive or self.deaf:
            return False
        if self.memory.take(size):
            return True
        self.die(71 if self.memory.ran_out else 72)
        return False

    def _work(self, job: wire.SpeakJob) -> bool:
        """Take what the job needs on top; returns whether there was enough."""
        if self.memory.work():
            return True
        code, status = ("out_of_memory", 71) if self.memory.ran_out else ("cuda_context", 72)
        if self.world.random.random() < 0.8:
            self._say_fatal(job, code, "does not fit")
        self.die(status)
        return False

    # --- messages

    def _say_fatal(self, job: wire.SpeakJob, code: str, message: str) -> None:
        """Say what ends the process: of one job, or of a step that several share, or of no job."""
        named = self.recorder.said(job.job)
        culprit, suspects = (named[0], []) if len(named) == 1 else ("", list(named))
        self.say(wire.Failed(job=culprit, code=code, message=message, fatal=True, suspects=suspects))

    def say(self, message: wire.WorkerMessage, body: bytes | None = None) -> None:
        self._deliver(inputs.WorkerSaid(self.incarnation, message, body))

    def _deliver(self, event: inputs.Input) -> None:
        at = max(self._delivered_at, self.world.now + self.world.random.uniform(0, WIRE_S) * pace(self.world.scene))
        self._delivered_at = at
        self.world.later(at - self.world.now, lambda: self.world.happen(event))

    def told(self, message: wire.SupervisorMessage) -> None:
        """A message from the supervisor; nobody reads it in a dead process, nor before the model is loaded."""
        if not self.alive or not self.loaded or self.deaf:
            return
        match message:
            case wire.SpeakJob():
                self._texts[message.job] = 0
                self._jobs.append(replace(message))
                self._next()
            case wire.AddText():
                self._add(message)
            case wire.CancelJob():
                if message.job in self.aside:
                    job, _, _ = self.aside.pop(message.job)
                    self._ended(job, wire.Failed(job=job.job, code="cancelled", message="cancelled"))
                elif message.job in self.has:
                    self._cancelled.add(message.job)
            case wire.SuspendJob():
                if message.job in self._at_work:
                    self._to_suspend.add(message.job)
                    if self.world.scene.slots > 1:
                        self.world.later(STEP_S * pace(self.world.scene), lambda: self._step(message.job), self)
            case wire.ResumeJob():
                self._resume(message.job)
            case wire.Trim():
                self.memory.trim()
                self.say(wire.Trimmed(memory=self.memory.report()))
            case wire.StopWorker():
                self._stop = True
                self._next()

    # --- its work

    def _next(self) -> None:
        while self.alive and self._jobs and len(self._at_work) < self.slots:
            job = self._jobs.popleft()
            self._engine.share(self._at_work)
            self._at_work[job.job] = job
            name = name_of(job.text)
            self.world.attempts[name] = self.world.attempts.get(name, 0) + 1
            if self._work(job):
                self._go_on(job, 1, segments_of(job.text))
        if self._stop and self.alive and not self._at_work and not self.aside and self.world.random.random() < 0.95:
            self.say(wire.Bye(reason="asked to"))
            self.die(0)

    def _add(self, message: wire.AddText) -> None:
        """More text for a job, wherever it is."""
        aside = [self.aside[message.job][0]] if message.job in self.aside else []
        for job in (*self._jobs, *self._at_work.values(), *aside):
            if job.job == message.job:
                must(Rule.ORDER, job.job not in self._complete, job.job, "gets text after its end")
                job.text += message.text
                self._texts[job.job] += 1
                if message.last:
                    self._complete.add(job.job)

    def _go_on(self, job: wire.SpeakJob, number: int, segments: int) -> None:
        took = SEGMENT_S[0] + self.world.random.expovariate(1 / SEGMENT_S[1])
        self._under_way[job.job] = turn = (number, segments, object())
        self.world.later(took * pace(self.world.scene), lambda: self._border(job, turn), self)

    def _border(self, job: wire.SpeakJob, turn: tuple[int, int, object]) -> None:
        """A segment is spoken, unless the job was put aside in the middle of it."""
        if self._under_way.get(job.job) is turn:
            del self._under_way[job.job]
            self._segment(job, *turn[:2])

    def _step(self, id: str) -> None:
        """With several slots a job is put aside at the next step: what it had of its segment stays, roughly."""
        job = self._at_work.get(id)
        if job is not None and id in self._to_suspend and id not in self._cancelled and id in self._under_way:
            if job.text.split()[0] in KILLING:
                # It goes wrong where it would have.
                return
            self._put_aside(job, *self._under_way.pop(id)[:2])

    def _progress(self, id: str, expected: int | None = None) -> wire.JobProgress:
        return wire.JobProgress(id, self._done.get(id, 0), expected, self._engine.took_s(id, self._at_work))

    def _resume(self, id: str) -> None:
        """Go on with a job that was put aside."""
        if id not in self.aside:
            # It was cancelled, and that is on its way to the supervisor.
            return
        must(Rule.ORDER, len(self._at_work) < self.slots, id, "is to go on beside", list(self._at_work))
        job, number, segments = self.aside.pop(id)
        self._engine.share(self._at_work)
        self._at_work[id] = job
        if job.text.split()[0] == "oversleep":
            self.recorder.went_wrong(id)
            self.deaf = True
            return
        if number > self._known(job, segments):
            self._wait_or_finish(job, number - 1)
            return
        self._go_on(job, number, segments)

    def _segment(self, job: wire.SpeakJob, number: int, segments: int) -> None:
        if not self.alive or self.deaf:
            return
        if job.job in self._cancelled:
            self._ended(job, wire.Failed(job=job.job, code="cancelled", message="cancelled"))
        elif not self._go_wrong(job, number, segments):
            self._done[job.job] = number
            self.say(wire.Beats(jobs=[self._progress(id) for id in self._at_work]))
            segments = self._known(job, segments)
            ends = not job.more or job.job in self._complete
            self.say(wire.SegmentDone(job=job.job, segment=number, segments=segments, audio_s=0.1 * number))
            if job.stream:
                piece = audio(job, number, 0 if self.world.scene.repeats else self.incarnation)
                if chunk := self._engine.stream(job, piece):
                    self.say(*chunk)
            if (number < segments or not ends) and self._puts_aside(job):
                self._put_aside(job, number + 1, segments)
            elif number < segments:
                self._go_on(job, number + 1, segments)
            else:
                self._wait_or_finish(job, number)

    def _known(self, job: wire.SpeakJob, segments: int) -> int:
        """How many segments a job has, as far as its text is there."""
        return segments_of(job.text) if job.more else segments

    def _put_aside(self, job: wire.SpeakJob, number: int, segments: int, *, waits: bool = False) -> None:
        work_s = self._engine.took_s(job.job, self._at_work)
        self._at_work.pop(job.job)
        self._to_suspend.discard(job.job)
        self.aside[job.job] = (job, number, segments)
        texts = self._texts[job.job]
        self.say(wire.Suspended(job=job.job, memory=self.memory.report(), waits=waits, texts=texts, work_s=work_s))
        self._next()

    def _wait_or_finish(self, job: wire.SpeakJob, spoken: int) -> None:
        """All text that is there is spoken."""
        if job.job in self._cancelled:
            self._ended(job, wire.Failed(job=job.job, code="cancelled", message="cancelled"))
        elif job.more and job.job not in self._complete:
            self._put_aside(job, spoken + 1, spoken, waits=True)
        else:
            self.world.spoken[job.job] = job.text
            self._finish(job, spoken)

    def _puts_aside(self, job: wire.SpeakJob) -> bool:
        """Whether a job is put aside at this border: asked to, and now and then without that."""
        return job.job in self._to_suspend or job.text.split()[0] == "unasked"

    def _go_wrong(self, job: wire.SpeakJob, number: int, segments: int) -> bool:
        plan = job.text.split()[0]
        if plan in KILLING:
            self.recorder.went_wrong(job.job)
        match plan:
            case "raise":
                self._ended(job, wire.Failed(job=job.job, code="synthesis_failed", message="its own words"))
            case "exit":
                self.die(self.world.random.choice([3, -11, -6]))
            case "exit_late" if number == segments:
                self.die(-11)
            case "once" if self.world.attempts[name_of(job.text)] == 1:
                self.die(-11)
            case "oom" | "sigterm" | "cuda":
                code, status = FATAL[plan]
                self._say_fatal(job, code, plan)
                self.die(status)
            case "cuda_mute":
                self.die(72)
            case "hang":
                self.deaf = True
            case "still":
                self._stand_still(job)
            case "runaway":
                self._run_away(job, 0)
            case "garbage":
                self._deliver(inputs.WorkerGarbled(self.incarnation, "a frame of noise"))
            case "stray":
                self.say(wire.Beats(jobs=[wire.JobProgress("nobody-1", 1)]))
            case "stray_fatal":
                self.say(wire.Failed(job="nobody-1", code="out_of_memory", message="of what?", fatal=True))
            case _:
                self.recorder.clear()
                return False
        return True

    def _say_done(self, job: wire.SpeakJob, done: int, expected: int) -> None:
        self._done[job.job] = done
        self.say(wire.Beats(jobs=[self._progress(job.job, expected)]))

    def _stand_still(self, job: wire.SpeakJob) -> None:
        """Say again and again that it is where it was."""
        if self.alive and not self.deaf:
            self._say_done(job, 1, expected=10)
            self.world.later(0.3, lambda: self._stand_still(job), self)

    def _run_away(self, job: wire.SpeakJob, done: int) -> None:
        """Make ever more, and never come to an end."""
        if self.alive and not self.deaf:
            self._say_done(job, done, expected=100)
            self.world.later(0.3, lambda: self._run_away(job, done + 200), self)

    def _finish(self, job: wire.SpeakJob, segments: int) -> None:
        plan = job.text.split()[0]
        self.memory.leak()
        if job.output is not None and plan != "nofile":
            # The name must not exist: that is how the worker writes it.
            mark = (job.output, job.job)
            own = mark in self.world.marks and self.world.files.get(job.output) == job.job
            wrote = self.world.files.get(job.output)
            must(Rule.OUTPUT_ONCE, own or wrote != job.job, job.job, "does not know its own output any more")
            if wrote is not None and not own:
                self._ended(job, wire.Failed(job=job.job, code="output_exists", message="the file is there"))
                return
            self.world.files[job.output] = job.job
            self.world.marks.add(mark)
            if plan == "unsaid" and self.world.attempts[name_of(job.text)] == 1:
                self.die(-11)
                return
        no_body = job.output is not None or plan == "nofile"
        body = None if no_body else audio(job, 0)
        result, problem = None, ""
        # Where the file can't be written, it is sent after all.
        if body is not None and job.result is not None:
            # Lives without such jobs stay as they are.
            luck = sum(map(ord, job.job)) % 100 / 100 if job.stream else self.world.random.random()
            if luck < 0.95:
                result = job.result
                self.world.journal.results[result] = body
                body = None
            elif luck > 0.99 or job.stream:
                problem = "No space left on device"
        if job.stream:
            body = None
        self._ended(
            job,
            wire.Finished(
                job=job.job,
                sample_rate=24_000,
                audio_s=0.1 * segments,
                synthesis_s=0.02 * pace(self.world.scene) * segments,
                first_audio_s=0.01 * pace(self.world.scene),
                voice="v",
                sha256="0" * 64,
                chunks=segments if job.stream else 0,
                bytes=len(body or b""),
                result=result,
                problem=problem,
                path=None if plan == "nofile" else job.output,
                work_s=self._engine.took_s(job.job, self._at_work),
                memory=self.memory.report(),
            ),
            body,
        )
        if plan == "last":
            self.die(-11)

    def _ended(self, job: wire.SpeakJob, message: wire.WorkerMessage, body: bytes | None = None) -> None:
        self.say(message, body)
        self._engine.share(self._at_work)
        self._at_work.pop(job.job, None)
        self._done.pop(job.job, None)
        self._engine.forget(job.job)
        self._to_suspend.discard(job.job)
        self._next()


#: Seconds of one step of an engine with several slots.
STEP_S = 0.005
