"""From the queue to the workers and back to the clients: starting jobs, passing on their audio, ending each once."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import UNSET

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Priority
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
    ResumeJob,
    SegmentDone,
    SpeakJob,
    SupervisorMessage,
    Suspended,
    SuspendJob,
    Trimmed,
    WorkerMessage,
)

from ..context import INTERNAL_ERROR, Context
from ..effects import SettleOutput, Tell
from ..exit_causes import CAUSE_OF_CODE, Cause
from ..inputs import ProcessEnded, StoredVoice
from ..jobs.estimates import BRIEF_S, Estimator
from ..jobs.job import Ending, Job
from ..jobs.job_table import JobTable
from ..jobs.queue import WaitingQueue
from ..workers.autoscaler import Autoscaler
from ..workers.pool import Pool
from ..workers.recycler import Recycler
from ..workers.worker import Worker, WorkerState
from .completion import Completion
from .durable import DurableJobs
from .forecast import Forecast
from .notifications import Notifications
from .preemption import Preemption
from .retry import Retries

_NO_BATCH: tuple[Priority, ...] = ("batch",)


class Dispatcher:
    """Owns the way of a job after its admission."""

    def __init__(
        self,
        context: Context,
        job_table: JobTable,
        queue: WaitingQueue,
        pool: Pool,
        *,
        completion: Completion,
        retries: Retries,
        forecast: Forecast,
        estimator: Estimator,
        notifications: Notifications,
        durable_jobs: DurableJobs,
        recycler: Recycler,
        autoscaler: Autoscaler,
        voices: dict[str, StoredVoice],
        results_folder: str,
    ) -> None:
        self._context = context
        self._job_table = job_table
        self._queue = queue
        self._pool = pool
        self._completion = completion
        self._retries = retries
        self._estimator = estimator
        self._notifications = notifications
        self._durable_jobs = durable_jobs
        self._recycler = recycler
        self._autoscaler = autoscaler
        self._voices = voices
        self._preemption = Preemption(context, job_table, queue, pool, forecast)
        #: Where results of durable jobs are kept until somebody fetches them.
        self._results_folder = results_folder

    # --- starting

    def take_up(self, job: Job) -> None:
        """An accepted job may be started now."""
        job.cost_s = self._estimator.expect_s(job)
        self._queue.push(job)
        self._context.stir()
        if job.deadline_at is not None:
            # While it waits it is given up as soon as it can't be done in time any more.
            due = job.deadline_at - self._estimator.least_s(job)
            self._context.timers.set(("deadline", job.id), max(self._context.now, due))

    def least_s(self, job: Job) -> float:
        """Seconds that a job takes at the very least, as far as is known."""
        return self._estimator.least_s(job)

    def starts_at_once(self, job: Job) -> bool:
        """Whether there is a worker for a job that is next."""
        if self._queue.paused or self._pool.free() is None:
            return False
        return job.request.priority != "batch" or self._batch_may_start()

    def schedule(self) -> None:
        """Give waiting jobs to free workers, and have others go on with what they had put aside."""
        self._context.guarded(self._schedule)

    def _schedule(self) -> None:
        if self._queue and not self._queue.paused:
            while self._queue.wants_fresh and (worker := self._pool.fresh()):
                self._take(self._queue.pop_for_fresh(), worker)
            brief = self._brief()
            while worker := self._pool.free(brief=brief):
                job = self._next()
                if job is None:
                    break
                self._queue.take(job)
                self._take(job, worker)
                brief = brief and job.cost_s < BRIEF_S
        for worker in self._pool.open():
            while self._go_on(worker):
                pass
        if not self._queue:
            if not self._job_table.live:
                self._queue.rest()
        elif not self._queue.paused:
            if self._queue.wants_fresh:
                self._recycler.freshen()
            self._autoscaler.on_waiting()
            self._look_for_room()

    def _next(self, *, batch: bool | None = None) -> Job | None:
        """The job whose turn it is; no batch job where those workers are busy that may have one."""
        batch = self._batch_may_start() if batch is None else batch
        return self._queue.peek(self._context.now, () if batch else _NO_BATCH)

    def _batch_may_start(self) -> bool:
        if not self._queue.length("batch"):
            return True
        serving = self._pool.serving
        kept_free = self._pool.kept_free(serving)
        if not kept_free:
            return True
        workers = self._pool.workers.values()
        return sum(worker.serving and self._has_batch(worker) for worker in workers) < serving - kept_free

    def _has_batch(self, worker: Worker) -> bool:
        """Whether it has a batch job, if only put aside: it will go on with that."""
        live = self._job_table.live
        return any(id in live and live[id].request.priority == "batch" for id in worker.jobs)

    def _look_for_room(self) -> None:
        """No worker is free: one may put its job aside for the next, a batch job for another one of its class."""
        # Nearly every step comes here: whose turn it is is worth asking only where somebody could yield.
        if not self._preemption.possible:
            return
        first = self._next(batch=True)
        self._preemption.look(first)
        if first is not None and first.request.priority == "batch":
            self._preemption.look(self._next(batch=False))

    def _brief(self) -> bool:
        """Whether a worker would mostly wait for the next job: then some may lie ready in the only one."""
        if not self._estimator.brief:
            return False
        live = self._job_table.live
        at_hand = [live[id] for worker in self._pool.workers.values() for id in worker.jobs if id in live]
        return all(job.cost_s < BRIEF_S for job in at_hand)

    def _go_on(self, worker: Worker) -> bool:
        """A worker has put a job aside: another one may come first, else it goes on. Returns whether it got neither."""
        live = self._job_table.live
        aside = next((live[id] for id in reversed(worker.aside) if id in live and live[id].ending is None), None)
        takes_jobs = worker.state is WorkerState.BUSY and not worker.leaving and not self._queue.paused
        # Of the workers that may have batch jobs it is one already.
        job = self._next(batch=self._has_batch(worker) or None) if takes_jobs else None
        # Without ``aside``, what it had put aside was cancelled, and it is about to say so.
        if job is not None and (aside is None or self._preemption.goes_before(job, aside)):
            self._queue.take(job)
            return not self._take(job, worker)
        if aside is not None:
            self._completion.guarded(aside, self._resume, aside, worker)
        return False

    def _resume(self, job: Job, worker: Worker) -> None:
        self._preemption.resumed(job)
        job.go_on(self._context.now)
        self._pool.resume(worker, job.id)
        self._notifications.note("resumed", job)

    def _take(self, job: Job | None, worker: Worker) -> bool:
        """Start a job, unless jobs of the same content killed workers since it was accepted; returns whether it did."""
        if job is None:
            return False
        self._completion.guarded(job, self._start, job, worker)
        return job.id in worker.jobs

    def _start(self, job: Job, worker: Worker) -> None:
        if self._retries.refuse_quarantined(job):
            return
        # No code that can raise stands between a job's state and the message that sends it.
        tell = Tell(worker.incarnation, self._message(job), job.recording)
        job.enter("running")  # waiting -> running
        job.worker = worker.name
        begins = self._pool.take(worker, job.id)
        self._context.effects.append(tell)
        if begins:
            self._begin(job, worker)

    def on_not_told(self, worker: Worker, message: SupervisorMessage) -> None:
        """A message was not sent to a worker, because of an internal error."""
        match message:
            case SpeakJob(job=id) | ResumeJob(job=id):
                if isinstance(message, SpeakJob):
                    self.is_through(worker, id)
                if (job := self._job_table.live.get(id)) is not None:
                    self._completion.fail(job, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)
            case SuspendJob():
                worker.to_suspend = ""
            case CancelJob(job=id) if id in (*worker.aside, worker.to_suspend):
                # The worker would keep a suspended job for ever. Any other job ends by itself.
                self.violation(worker, "it was not told to leave a suspended job", culprits=())
            case _:
                pass

    def is_through(self, worker: Worker, id: str) -> None:
        """After an internal error: the worker does not have this job, or no longer."""
        if id in worker.jobs:
            self._give_back(worker, id, None, spoke=False)

    def _message(self, job: Job) -> SpeakJob:
        request = job.request
        voice = request.voice if request.voice is not UNSET else None
        if voice is None and request.prompt is UNSET:
            voice = self._context.settings.voices.default or None
        stored = self._voices.get(voice) if voice is not None and voice not in self._pool.own_voices else None
        prompt_text = stored.text if stored else None
        if request.prompt is not UNSET:
            prompt_text = request.prompt.text
        return SpeakJob(
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
            output=job.output_path or None,
            result=self._result_path(job),
        )

    def _result_path(self, job: Job) -> str | None:
        """Where a durable job's file goes, if it goes nowhere else."""
        if not job.durable or job.output_path or not self._results_folder:
            return None
        return f"{self._results_folder}/{job.id}"

    def _begin(self, job: Job, worker: Worker) -> None:
        """The worker works on the job from now on."""
        now = self._context.now
        job.begun = True
        job.attempts += 1
        job.go_on(now)
        job.waited_s = now - job.accepted_at
        if job.deadline_at is not None:
            self._context.timers.set(("deadline", job.id), job.deadline_at)
        self._notifications.begun(job, worker.gpu)
        self._context.counters.begun(job)
        if job.attempts == 1 and job.estimated_wait_s is not None:
            self._estimator.judge(job.estimated_wait_s, job.waited_s)
            self._context.counters.estimated(job.estimated_wait_s, job.waited_s)

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

    def violation(self, worker: Worker, what: str, culprits: Collection[str] | None = None) -> None:
        """A worker that talks nonsense may have damaged its memory: it is not trusted with a job any more."""
        if worker.state is not WorkerState.STOPPING:
            self._retries.decide(*self._pool.fail(worker, Cause.PROTOCOL, f"protocol violation: {what}"), culprits)

    def _job_of(self, worker: Worker, id: str) -> Job | None:
        """The live job that a worker speaks of; None if it has ended meanwhile, or is not that worker's."""
        if id not in worker.jobs:
            self.violation(worker, f"speaks of job {id[:64]!r}, which it was not given")
            return None
        job = self._job_table.live.get(id)
        if job is None or job.state != "running" or job.worker != worker.name or job.ending is not None:
            return None
        if not job.begun:
            self._begin(job, worker)
        return job

    def on_beat(self, worker: Worker, message: Beat) -> None:
        if message.job in worker.jobs:
            self._pool.moved(worker, message.job, message.done)
            if failed := self._pool.runs_away(worker, message.done, message.expected):
                self._retries.decide(*failed, [message.job])
                return
        self._job_of(worker, message.job)

    def on_segment(self, worker: Worker, message: SegmentDone) -> None:
        self._pool.moved(worker, message.job)
        job = self._job_of(worker, message.job)
        if job is None:
            return
        job.segment, job.segments, job.audio_s = message.segment, message.segments, message.audio_s
        job.border_s = job.active_s(self._context.now)
        event = events.Progress(
            id="",
            job=job.id,
            segment=message.segment,
            segments=message.segments,
            audio_s=round(message.audio_s, 6),
        )
        self._notifications.tell(job, event)

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
        if message.seq == 0:
            for subscriber in job.subscribers:
                subscriber.heard = subscriber.all_events
        event = events.Audio(
            id="",
            job=job.id,
            seq=message.seq,
            format=job.format,
            sample_rate=job.sample_rate or 0,
            channels=1,
        )
        # Who asks later for a durable one gets it whole when it is done, and no part of it now.
        self._notifications.tell(job, event, body, heard=job.durable)

    def _give_back(self, worker: Worker, id: str, memory: Memory | None, *, spoke: bool) -> None:
        """The worker is through with a job, and with that begins the next that lies ready in it."""
        self._begin_ready(self._pool.give_back(worker, id, memory, spoke=spoke), worker)
        self._context.guarded(self._recycler.after_job, worker)

    def _begin_ready(self, jobs: list[str], worker: Worker) -> None:
        """The worker works on these now; some may have lain ready in it."""
        for id in jobs:
            job = self._job_table.live.get(id)
            if job is not None and job.ending is None and not job.begun:
                self._completion.guarded(job, self._begin, job, worker)

    def on_finished(self, worker: Worker, message: Finished, body: bytes | memoryview | None) -> None:
        job = self._job_of(worker, message.job)
        if job is None:
            if message.job in worker.jobs:
                self._give_back(worker, message.job, message.memory, spoke=True)
                if message.path is not None:
                    # It was cancelled a moment too late: nobody knows of the file, nor wants it.
                    self._context.effects.append(SettleOutput(message.job, message.path, wanted=False))
            return
        elsewhere = message.path is not None or message.result is not None
        if (body is None) == (not job.streams and not elsewhere):
            self.violation(worker, "a file is missing, or sent where none is wanted")
            return
        if job.streams and message.chunks != job.chunks:
            self.violation(worker, f"a stream of {message.chunks} chunks, of which {job.chunks} came")
            return
        self._give_back(worker, job.id, message.memory, spoke=True)
        now = self._context.now
        if message.synthesis_s > 0.0:  # else an earlier attempt had done the work
            self._estimator.learn(job, max(job.active_s(now), message.synthesis_s))
        if self._retries.quarantine:
            self._retries.quarantine.clear(self._retries.content(job))
        if message.problem and not self._durable_jobs.not_kept(job, message.problem):
            self._retries.take_back(job)
            self._durable_jobs.wait_for_disk(job)
            return
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
        self._completion.end(job, Ending("done", event, body, message.result or ""))
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
        if message.result is not None:
            self._durable_jobs.kept()

    def on_failed(self, worker: Worker, message: Failed) -> None:
        job = self._job_of(worker, message.job)
        if message.fatal:
            # FAILED: what it said of the job was nonsense, and its end is decided already.
            if worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
                cause = CAUSE_OF_CODE.get(message.code, Cause.CRASHED)
                # It names the job that it can't go on from, where it has several.
                culprits = [message.job] if message.job in worker.jobs else None
                detail = message.reason or message.code
                self._retries.decide(*self._pool.fail(worker, cause, detail, patient=True), culprits)
            return
        if message.job in worker.jobs:
            self._give_back(worker, message.job, message.memory, spoke=False)
        if job is not None:
            try:
                code = ErrorCode(message.code)
            except ValueError:
                code = ErrorCode.SYNTHESIS_FAILED
            self._completion.fail(job, code, message.message, reason=message.reason or message.code)

    def on_suspended(self, worker: Worker, message: Suspended) -> None:
        """A worker has put a job aside."""
        job = self._job_of(worker, message.job)
        if message.job not in worker.jobs:
            return
        if worker.to_suspend != message.job:
            self.violation(worker, f"put aside {message.job!r}, which nobody had asked for")
            return
        if job is not None:
            self._preemption.put_aside(job)
        self._begin_ready(self._pool.suspended(worker, message.job, message.memory), worker)
        if job is not None:
            self._notifications.note("suspended", job)

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
        ended = self._pool.on_ended(event.incarnation, event.returncode, event.last_words, oom_killed=event.oom_killed)
        if ended is not None:
            _, death, jobs = ended
            self._retries.decide(death, jobs)

    def on_start_timeout(self, name: str) -> None:
        if failed := self._pool.on_start_timeout(name):
            self._retries.decide(*failed)

    def on_hang_check(self, name: str) -> None:
        stalled = self._pool.stalled(self._pool.workers[name])
        if failed := self._pool.on_hang_check(name):
            self._retries.decide(*failed, stalled)

    # --- deadlines

    def on_deadline(self, id: str) -> None:
        """A job is not finished in the time that its client gave it, or can't be any more."""
        job = self._job_table.live.get(id)
        if job is None or job.ending is not None or job.deadline_at is None:
            return
        left_s = job.deadline_at - self._context.now
        if left_s > 0.0 and job.begun:
            self._context.timers.set(("deadline", job.id), job.deadline_at)
        elif left_s > 0.0:
            message = f"it takes about {job.cost_s:.1f} s, and only {left_s:.1f} s were left until its deadline"
            self._completion.fail(job, ErrorCode.DEADLINE_EXCEEDED, f"not started in time: {message}")
        else:
            where = "while it was spoken" if job.begun else "while it waited"
            message = f"not finished within its deadline, which passed {where}"
            self._completion.fail(job, ErrorCode.DEADLINE_EXCEEDED, message)


_HANDLERS: dict[type, Callable[..., None]] = {
    Ready: lambda dispatcher, worker, message, _: dispatcher.on_ready(worker, message),
    Hello: lambda *_: None,
    Beat: lambda dispatcher, worker, message, _: dispatcher.on_beat(worker, message),
    SegmentDone: lambda dispatcher, worker, message, _: dispatcher.on_segment(worker, message),
    AudioChunk: Dispatcher.on_audio,
    Finished: Dispatcher.on_finished,
    Failed: lambda dispatcher, worker, message, _: dispatcher.on_failed(worker, message),
    Suspended: lambda dispatcher, worker, message, _: dispatcher.on_suspended(worker, message),
    Trimmed: lambda dispatcher, worker, message, _: dispatcher.on_trimmed(worker, message),
    Bye: lambda dispatcher, worker, message, _: dispatcher.on_bye(worker, message),
}
