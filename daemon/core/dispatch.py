"""From the queue to the workers and back to the clients: starting jobs, passing on their audio, ending each once."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
from msgspec import UNSET

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import (
    AudioChunk,
    Beat,
    Bye,
    CancelJob,
    Failed,
    Finished,
    Hello,
    Memory,
    Ready,
    SegmentDone,
    Trimmed,
    WorkerMessage,
)
from glmtts.protocol.worker import (
    Job as JobMessage,
)

from .causes import CAUSE_OF_CODE, POLICIES, Cause
from .context import Context
from .effects import Tell
from .estimate import Estimator
from .inputs import ProcessEnded, StoredVoice
from .jobs import Job
from .ledger import Ledger, content_digest
from .pool import Pool
from .quarantine import Quarantine
from .queue import WaitingQueue
from .recycler import Recycler
from .scaler import Scaler
from .workers import Death, Worker, WorkerState

#: How many of the waiting hear of a change of their position: the others would wait for very long anyhow.
TOLD_POSITIONS = 256
#: At most so often, in seconds (docs/protocol.md).
POSITIONS_EVERY_S = 1.0


class Dispatcher:
    """Owns the way of a job after its admission."""

    def __init__(
        self,
        context: Context,
        ledger: Ledger,
        queue: WaitingQueue,
        pool: Pool,
        *,
        recycler: Recycler,
        scaler: Scaler,
        voices: dict[str, StoredVoice],
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._queue = queue
        self._pool = pool
        self._recycler = recycler
        self._scaler = scaler
        self._voices = voices
        self.estimator = Estimator()
        self.quarantine = Quarantine()
        self.paused = False
        #: Ended jobs by how they ended: ``done``, or the code of their error.
        self.outcomes: dict[str, int] = {}
        self.outputs_folder = ""

    # --- starting

    def schedule(self) -> None:
        """Give waiting jobs to free workers."""
        if self.paused or not self._queue:
            return
        while self._queue.wants_fresh and (worker := self._pool.fresh()):
            self._take(self._queue.pop_for_fresh(), worker)
        while worker := self._pool.free(brief=self.estimator.brief):
            job = self._queue.pop()
            if job is None:
                break
            self._take(job, worker)
        if self._queue:
            if self._queue.wants_fresh:
                self._recycler.freshen()
            self._scaler.on_waiting()

    def _take(self, job: Job | None, worker: Worker) -> None:
        """Start a job, unless jobs of the same content killed workers since it was accepted."""
        if job is None:
            return
        if self.quarantine and (deaths := self.quarantined(self.content(job))):
            self._end_in_error(job, ErrorCode.QUARANTINED, quarantine_message(deaths))
        else:
            self._start(job, worker)

    @staticmethod
    def content(job: Job) -> str:
        """The digest of a live job's content."""
        job.content = job.content or content_digest(job.request, job.recording)
        return job.content

    def quarantined(self, content: str) -> int:
        """How many workers died of this content, where that is too many; else 0."""
        limit = self._context.settings.workers.restart.quarantine_after
        deaths = self.quarantine.deaths(content, self._context.now)
        return deaths if limit and deaths >= limit else 0

    def quarantined_count(self) -> int:
        """How many contents are refused."""
        limit = self._context.settings.workers.restart.quarantine_after
        return len(self.quarantine.describe(self._context.now, limit)) if limit else 0

    def _start(self, job: Job, worker: Worker) -> None:
        context, request = self._context, job.request
        job.enter("running")  # waiting -> running
        job.worker = worker.name
        begins = self._pool.take(worker, job.id)
        voice = request.voice if request.voice is not UNSET else None
        if voice is None and request.prompt is UNSET:
            voice = context.settings.voices.default or None
        stored = self._voices.get(voice) if voice is not None and voice not in self._pool.own_voices else None
        prompt_text = stored.text if stored else None
        if request.prompt is not UNSET:
            prompt_text = request.prompt.text
        output = None
        if request.output is not UNSET:
            output = f"{self.outputs_folder}/{request.output}"
        message = JobMessage(
            job=job.id,
            text=request.text,
            voice=voice,
            format=job.format,
            sample_rate=job.sample_rate,
            stream=job.streams,
            seed=request.seed,
            options=request.options,
            prompt_text=prompt_text,
            recording=stored.path if stored else None,
            output=output,
        )
        context.effects.append(Tell(worker.spawn, message, job.recording))
        if begins:
            self._begin(job, worker)

    def _begin(self, job: Job, worker: Worker) -> None:
        """The worker works on the job from now on."""
        context = self._context
        job.begun = True
        job.attempts += 1
        job.started_at = context.now
        job.waited_s = context.now - job.accepted_at
        event = events.Started(
            id="",
            job=job.id,
            worker=worker.name,
            gpu=worker.gpu,
            attempt=job.attempts,
            waited_s=round(job.waited_s, 6),
        )
        self._tell(job, event)
        if context.watched:
            context.publish("job.running", job=job.id, worker=worker.name, attempt=job.attempts)
        context.log("debug", "job started", job=job.id, worker=worker.name, attempt=job.attempts)

    def _tell(
        self,
        job: Job,
        event: events.Started | events.Progress | events.Audio | events.Queued,
        body: bytes | memoryview | None = None,
    ) -> None:
        """Send an event on a job's way to everybody who hears more than its end, each under the id of his request."""
        for subscriber in job.subscribers:
            if subscriber.all_events:
                self._context.send(subscriber.to, msgspec.structs.replace(event, id=subscriber.id), body)

    # --- what workers say

    def on_message(self, worker: Worker, message: WorkerMessage, body: bytes | memoryview | None) -> None:
        """A worker said something; what it may not say at this point is a violation, and its end."""
        handler = _HANDLERS.get(type(message))
        if handler is None:
            return
        if worker.ready is None and not isinstance(message, Hello | Ready | Bye):
            self.violation(worker, f"{message.__struct_config__.tag} before ready")
            return
        handler(self, worker, message, body)

    def violation(self, worker: Worker, what: str) -> None:
        """A worker that talks nonsense may have damaged its memory: it is not trusted with a job any more."""
        if worker.state is not WorkerState.STOPPING:
            self._decide(*self._pool.fail(worker, Cause.PROTOCOL, f"protocol violation: {what}"))

    def _job_of(self, worker: Worker, id: str) -> Job | None:
        """The live job that a worker speaks of; None if it has ended meanwhile, or is not that worker's."""
        if id not in worker.jobs:
            self.violation(worker, f"speaks of job {id[:64]!r}, which it was not given")
            return None
        job = self._ledger.live.get(id)
        if job is None or job.state != "running" or job.worker != worker.name:
            return None
        if not job.begun:
            self._begin(job, worker)
        return job

    def on_beat(self, worker: Worker, message: Beat) -> None:
        if message.job in worker.jobs:
            self._pool.moved(worker, message.job, message.done)
            if failed := self._pool.runs_away(worker, message.done, message.expected):
                self._decide(*failed, [message.job])
                return
        self._job_of(worker, message.job)

    def on_segment(self, worker: Worker, message: SegmentDone) -> None:
        self._pool.moved(worker, message.job)
        job = self._job_of(worker, message.job)
        if job is None:
            return
        job.segment, job.segments, job.audio_s = message.segment, message.segments, message.audio_s
        event = events.Progress(
            id="",
            job=job.id,
            segment=message.segment,
            segments=message.segments,
            audio_s=round(message.audio_s, 6),
        )
        self._tell(job, event)

    def on_audio(self, worker: Worker, message: AudioChunk, body: bytes | memoryview | None) -> None:
        job = self._job_of(worker, message.job)
        if job is None:
            return
        if body is None or not job.streams or message.seq != job.chunks:
            self.violation(worker, f"audio chunk {message.seq} where {job.chunks} was expected")
            return
        self._pool.moved(worker, message.job)
        if job.first_audio_at is None:
            job.first_audio_at = self._context.now
        job.chunks += 1
        event = events.Audio(
            id="",
            job=job.id,
            seq=message.seq,
            format=job.format,
            sample_rate=job.sample_rate or 0,
            channels=1,
        )
        self._tell(job, event, body)

    def _give_back(self, worker: Worker, id: str, memory: Memory | None, *, spoke: bool) -> None:
        """The worker is through with a job, and with that begins the next that lies ready in it."""
        for next_id in self._pool.give_back(worker, id, memory, spoke=spoke):
            job = self._ledger.live.get(next_id)
            if job is not None and not job.begun:
                self._begin(job, worker)
        self._recycler.after_job(worker)

    def on_finished(self, worker: Worker, message: Finished, body: bytes | memoryview | None) -> None:
        job = self._job_of(worker, message.job)
        if job is None:
            if message.job in worker.jobs:
                self._give_back(worker, message.job, message.memory, spoke=True)
            return
        if (body is None) == (not job.streams and message.path is None):
            self.violation(worker, "a file is missing, or sent where none is wanted")
            return
        if job.streams and message.chunks != job.chunks:
            self.violation(worker, f"a stream of {message.chunks} chunks, of which {job.chunks} came")
            return
        self._give_back(worker, job.id, message.memory, spoke=True)
        now = self._context.now
        self.estimator.learn(len(job.request.text), message.synthesis_s)
        if self.quarantine:
            self.quarantine.clear(self.content(job))
        job.audio_s, job.synthesis_s = message.audio_s, message.synthesis_s
        engine = worker.ready.engine if worker.ready else ""
        first_audio_s = message.first_audio_s + job.waited_s
        if job.first_audio_at is not None:
            first_audio_s = job.first_audio_at - job.accepted_at
        event = events.Done(
            id="",
            job=job.id,
            format=job.format,
            sample_rate=message.sample_rate,
            audio_s=round(message.audio_s, 6),
            waited_s=round(job.waited_s, 6),
            synthesis_s=round(message.synthesis_s, 6),
            first_audio_s=round(first_audio_s, 6),
            rtf=round(message.synthesis_s / message.audio_s, 4) if message.audio_s else 0.0,
            attempts=job.attempts,
            engine=engine,
            voice=message.voice,
            sha256=message.sha256,
        )
        if message.path is not None:
            event.path, event.bytes = message.path, message.bytes
        if job.streams:
            event.chunks = message.chunks
        self._context.log(
            "info",
            "job done",
            job=job.id,
            worker=worker.name,
            client=job.client.key,
            audio_s=event.audio_s,
            waited_s=event.waited_s,
            synthesis_s=event.synthesis_s,
            total_s=round(now - job.accepted_at, 6),
        )
        self._end(job, "done", event, body)

    def on_failed(self, worker: Worker, message: Failed) -> None:
        job = self._job_of(worker, message.job)
        if message.fatal:
            # FAILED: what it said of the job was nonsense, and its end is decided already.
            if worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
                cause = CAUSE_OF_CODE.get(message.code, Cause.CRASHED)
                # It names the job that it can't go on from, where it has several.
                culprits = [message.job] if message.job in worker.jobs else None
                self._decide(*self._pool.fail(worker, cause, message.message, patient=True), culprits)
            return
        if message.job in worker.jobs:
            self._give_back(worker, message.job, message.memory, spoke=False)
        if job is not None:
            try:
                code = ErrorCode(message.code)
            except ValueError:
                code = ErrorCode.SYNTHESIS_FAILED
            self.fail(job, code, message.message)

    def on_trimmed(self, worker: Worker, message: Trimmed) -> None:
        self._recycler.on_trimmed(worker, message.memory)

    def on_bye(self, worker: Worker, message: Bye) -> None:
        self._context.log("debug", "worker says goodbye", worker=worker.name, reason=message.reason)

    def on_ready(self, worker: Worker, message: Ready) -> None:
        self._pool.on_ready(worker, message)
        self._recycler.on_ready(worker)

    # --- deaths

    def on_ended(self, event: ProcessEnded) -> None:
        """A worker's process is gone."""
        ended = self._pool.on_ended(event.spawn, event.returncode, event.last_words, oom_killed=event.oom_killed)
        if ended is not None:
            _, death, jobs = ended
            self._decide(death, jobs)

    def on_start_timeout(self, name: str) -> None:
        self._decide(*self._pool.on_start_timeout(name))

    def on_hang_check(self, name: str) -> None:
        stalled = self._pool.stalled(self._pool.workers[name])
        if failed := self._pool.on_hang_check(name):
            self._decide(*failed, stalled)

    def _decide(self, death: Death, jobs: list[str], culprits: Collection[str] | None = None) -> None:
        """The fate of the jobs of a worker that died: another attempt, or the end.

        ``culprits``: those that may be to blame, where it is known; else each that the worker had begun may be.
        """
        # The last that it got first, since each goes to the front of the queue.
        had = [self._ledger.live.get(id) for id in reversed(jobs)]
        affected = []
        for job in had:
            if job is None or job.state != "running":
                continue
            if job.begun:
                affected.append(job)
            else:
                # It had lain ready in the worker: neither is it to blame, nor was that an attempt.
                self._wait_again(job)
        policy = POLICIES[death.cause]
        if policy.blames_job:
            self._blame([job for job in affected if culprits is None or job.id in culprits], death)
        for job in affected:
            self._after_death(job, death)

    def _blame(self, jobs: list[Job], death: Death) -> None:
        """Count a worker's death against what it was speaking."""
        holds_s = self._context.settings.workers.restart.quarantine_s
        for job in {self.content(job): job for job in jobs}.values():
            self.quarantine.blame(
                self.content(job),
                self._context.now,
                holds_s,
                cause=death.cause.value,
                detail=death.detail,
                client=job.client.key,
                job=job.id,
            )

    def _after_death(self, job: Job, death: Death) -> None:
        """Another attempt for a job whose worker died, or its end."""
        policy = POLICIES[death.cause]
        attempts_left = job.attempts < self._context.settings.workers.restart.max_attempts and not job.audio_was_sent
        deaths = self.quarantined(self.content(job)) if policy.blames_job else 0
        out_of_memory = death.cause is Cause.OUT_OF_MEMORY
        if attempts_left and deaths:
            self.fail(job, ErrorCode.QUARANTINED, f"{quarantine_message(deaths)}; the last: {death.detail}")
        elif attempts_left and not (out_of_memory and job.needs_fresh):
            job.needs_fresh = job.needs_fresh or out_of_memory
            self._wait_again(job)
            self._context.log("info", "job waits for another attempt", job=job.id, after=death.detail)
        else:
            notes = ""
            if job.audio_was_sent:
                notes = "; a part of it had been sent, so it was not started again"
            elif out_of_memory and job.needs_fresh:
                notes = ", and so did the one before; a shorter text may fit"
            self.fail(job, policy.code, f"the worker failed ({death.detail}){notes}")

    def _wait_again(self, job: Job) -> None:
        """Back to the front of the queue."""
        job.enter("waiting")  # running -> waiting
        job.worker = None
        job.begun = False
        job.segment = job.segments = 0
        job.audio_s = 0.0
        job.told_position = -1
        self._queue.push(job, front=True)

    # --- ends

    def fail(self, job: Job, code: ErrorCode, message: str, *, retry_after_s: float | None = None) -> None:
        """End a live job with an error; a worker that has it is told to leave it."""
        if job.state == "waiting" and job.worker is None:
            self._queue.remove(job)
        elif (worker := self._pool.workers.get(job.worker or "")) is not None and job.id in worker.jobs:
            self._context.effects.append(Tell(worker.spawn, CancelJob(job=job.id)))
        self._end_in_error(job, code, message, retry_after_s)

    def _end_in_error(self, job: Job, code: ErrorCode, message: str, retry_after_s: float | None = None) -> None:
        job.code, job.message = code.value, message
        event = events.Error.of("", code, message, job=job.id, retry_after_s=retry_after_s)
        self._context.log(
            "info" if code is ErrorCode.CANCELLED else "warning",
            "job ended in an error",
            job=job.id,
            client=job.client.key,
            code=code.value,
            reason=message,
        )
        self._end(job, "cancelled" if code is ErrorCode.CANCELLED else "failed", event, None)

    def fail_waiting(self, code: ErrorCode, message: str, *, retry_after_s: float | None = None) -> None:
        """End all that wait."""
        for job in list(self._queue):
            self.fail(job, code, message, retry_after_s=retry_after_s)

    def _end(self, job: Job, state: str, event: events.Done | events.Error, body: bytes | memoryview | None) -> None:
        context = self._context
        job.enter(state)  # type: ignore[arg-type]
        job.ended_at = context.now
        outcome = event.code if isinstance(event, events.Error) else "done"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if job.deadline_at is not None:
            context.timers.cancel(("deadline", job.id))
        for subscriber in job.subscribers:
            context.send(subscriber.to, msgspec.structs.replace(event, id=subscriber.id), body)
        if context.watched:
            context.publish(f"job.{state}", job=job.id, outcome=outcome, worker=job.worker)
        keep = context.settings.queue
        self._ledger.end(job, event, body, context.now + keep.keep_results_s)
        if self._ledger.result_bytes > keep.keep_results_mib << 20 or ("expire", "") not in context.timers:
            self.expire()

    def expire(self) -> None:
        """Forget what was kept for long enough."""
        again = self._ledger.expire(self._context.now, self._context.settings.queue.keep_results_mib << 20)
        if again is not None:
            # Not at every expiry by itself: a busy daemon would do nothing else.
            self._context.timers.set(("expire", ""), max(again, self._context.now + 1.0))

    def on_deadline(self, id: str) -> None:
        """A job is not finished in the time that its client gave it."""
        if job := self._ledger.live.get(id):
            where = "while it waited" if job.state == "waiting" else "while it was spoken"
            self.fail(job, ErrorCode.DEADLINE_EXCEEDED, f"not finished within its deadline, which passed {where}")

    # --- positions

    def estimated_wait(self, characters_ahead: int) -> float | None:
        """Seconds until so many characters ahead, and what is being spoken now, are through; None if nobody knows."""
        if not characters_ahead and not self.paused and self._pool.free():
            return 0.0
        live = self._ledger.live
        speaking = sum(
            len(live[id].request.text) for worker in self._pool.workers.values() for id in worker.jobs if id in live
        )
        # Of what is being spoken, half is left: now more, now less.
        return self.estimator.wait_s(characters_ahead + speaking // 2, self._pool.serving)

    def tell_positions(self) -> None:
        """Tell the first in the queue whose position has changed."""
        size = len(self._queue)
        characters = 0
        for position, job in self._queue.first(TOLD_POSITIONS):
            if job.told_position not in (-1, position):
                wait = self.estimated_wait(characters)
                event = events.Queued(
                    id="",
                    job=job.id,
                    position=position,
                    queue_size=size,
                    estimated_wait_s=UNSET if wait is None else wait,
                )
                self._tell(job, event)
            job.told_position = position
            characters += len(job.request.text)
        if size:
            self._context.timers.set(("positions", ""), self._context.now + POSITIONS_EVERY_S)
            self._context.publish("queue", waiting=size, running=len(self._ledger.live) - size)


def quarantine_message(deaths: int) -> str:
    """What a client is told of a content that is not tried again."""
    return f"{deaths} workers died of this very job lately; it is not tried again"


_HANDLERS: dict[type, Callable[..., None]] = {
    Ready: lambda dispatcher, worker, message, _: dispatcher.on_ready(worker, message),
    Hello: lambda *_: None,
    Beat: lambda dispatcher, worker, message, _: dispatcher.on_beat(worker, message),
    SegmentDone: lambda dispatcher, worker, message, _: dispatcher.on_segment(worker, message),
    AudioChunk: Dispatcher.on_audio,
    Finished: Dispatcher.on_finished,
    Failed: lambda dispatcher, worker, message, _: dispatcher.on_failed(worker, message),
    Trimmed: lambda dispatcher, worker, message, _: dispatcher.on_trimmed(worker, message),
    Bye: lambda dispatcher, worker, message, _: dispatcher.on_bye(worker, message),
}
