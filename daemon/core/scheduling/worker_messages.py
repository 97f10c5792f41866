"""Messages of workers: audio and progress go to clients, the end of a job to its completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glmtts.protocol import events
from glmtts.protocol import worker as wire
from glmtts.protocol.errors import ErrorCode

from ..context import INTERNAL_ERROR
from ..effects import SettleOutput, Tell
from ..exit_causes import CAUSE_OF_CODE, Cause
from ..inputs import ProcessEnded, RecorderRead
from ..jobs.job import Ending, Job
from ..state import State
from ..workers import hang_check
from ..workers.worker import Worker, WorkerState, maker
from .completion import Completion
from .dispatcher import Dispatcher
from .durable import DurableJobs
from .notifications import Notifications, audio_event
from .retry import Retries


class WorkerMessages:
    """Handles what workers say about their jobs. A message that is not possible at that point ends the process."""

    def __init__(
        self,
        state: State,
        *,
        dispatcher: Dispatcher,
        completion: Completion,
        retries: Retries,
        durable_jobs: DurableJobs,
        notifications: Notifications,
    ) -> None:
        self._context, self._job_table, self._pool = state.context, state.job_table, state.pool
        self._estimator, self._recycler, self._queue = state.estimator, state.recycler, state.queue
        self._dispatcher = dispatcher
        self._completion = completion
        self._retries = retries
        self._durable_jobs = durable_jobs
        self._notifications = notifications

    def on_message(self, worker: Worker, message: wire.WorkerMessage, body: bytes | memoryview | None) -> None:
        """Handle a message; one that is not allowed at this point is a violation, and ends the process."""
        handler = _HANDLERS.get(type(message))
        if handler is None:
            return
        if worker.process.ready is None and not isinstance(message, wire.Hello | wire.Ready | wire.Bye):
            self.violation(worker, f"{message.__struct_config__.tag} before ready")
            return
        handler(self, worker, message, body)

    def violation(self, worker: Worker, what: str, candidates: Sequence[str] | None = None) -> None:
        """End a process that breaks the protocol: its memory may be damaged."""
        if worker.state is not WorkerState.STOPPING:
            self._pool.fail(worker, Cause.PROTOCOL, f"protocol violation: {what}")
            self._retries.failed(worker, candidates)

    def _job_of(self, worker: Worker, id: str) -> Job | None:
        """The live job that a worker names; None if it has ended meanwhile, or is not that worker's."""
        if id not in worker.jobs:
            self.violation(worker, f"names job {id[:64]!r}, which it was not given")
            return None
        job = self._job_table.live.get(id)
        if job is None or job.state != "running" or job.attempt.worker != worker.name or job.ending is not None:
            return None
        if not job.attempt.begun:
            self._dispatcher.begin(job, worker)
            self._context.jobs_dirty = True
        return job

    def on_beats(self, worker: Worker, message: wire.Beats) -> None:
        for progress in message.jobs:
            # The one before it may have ended the process.
            if worker.state is not WorkerState.FAILED:
                self._on_progress(worker, progress)

    def _on_progress(self, worker: Worker, progress: wire.JobProgress) -> None:
        if progress.job in worker.jobs:
            worker.process.progressed(progress.job, self._context.now, progress.done)
            if hang_check.check_runaway(self._pool, worker, progress.done, progress.expected):
                self._retries.failed(worker, [progress.job])
                return
        job = self._job_of(worker, progress.job)
        if job is not None:
            job.attempt.tell_work(progress.work_s, self._context.now)

    def on_segment(self, worker: Worker, message: wire.SegmentDone) -> None:
        worker.process.progressed(message.job, self._context.now)
        job = self._job_of(worker, message.job)
        if job is None:
            return
        attempt = job.attempt
        attempt.segment, attempt.segments = message.segment, message.segments
        attempt.audio_s = max(attempt.audio_s, message.audio_s)
        attempt.boundary_s = attempt.work_s(self._context.now)
        # Without a waiting job nothing can be suspended here.
        self._context.jobs_dirty = self._context.jobs_dirty or bool(self._queue)
        # A stream that goes on tells its client nothing of what it has heard before.
        if message.segment <= attempt.told_segment:
            return
        attempt.told_segment = message.segment
        event = events.Progress(
            id="",
            job=job.id,
            segment=message.segment,
            segments=message.segments,
            audio_s=round(message.audio_s, 6),
        )
        self._notifications.tell(job, event)

    def on_audio(self, worker: Worker, message: wire.AudioChunk, body: bytes | memoryview | None) -> None:
        job = self._job_of(worker, message.job)
        if job is None:
            return
        if body is None or not job.streams or message.seq != job.attempt.chunks:
            self.violation(worker, f"audio chunk {message.seq} where {job.attempt.chunks} was expected", [job.id])
            return
        worker.process.progressed(message.job, self._context.now)
        if job.attempt.first_audio_at is None:
            job.attempt.first_audio_at = self._context.now
        job.attempt.chunks += 1
        job.attempt.size += len(body)
        job.attempt.digest = message.digest
        job.attempt.audio_s = max(job.attempt.audio_s, message.audio_s)
        if message.seq == 0:
            job.attempt.made_by = maker(worker)
            for subscriber in job.subscribers:
                subscriber.heard = subscriber.all_events and subscriber.audio
        if job.request.follow:
            job.attempt.keep(body)
        # A later request for a durable job gets it whole when it is done, and no part of it now.
        self._notifications.tell(job, audio_event(job, message.seq), body, heard=job.durable)

    def _give_back(self, worker: Worker, id: str, memory: wire.Memory | None, *, spoke: bool) -> None:
        """The worker is done with a job, and with that begins the next that lies ready in it."""
        self._begin_ready(self._pool.give_back(worker, id, memory, spoke=spoke), worker)
        self._context.guarded(self._recycler.after_job, worker)

    def _begin_ready(self, jobs: list[str], worker: Worker) -> None:
        """The worker works on these jobs now; some of them lay ready in it."""
        for id in jobs:
            job = self._job_table.live.get(id)
            if job is not None and job.ending is None and not job.attempt.begun:
                self._completion.guarded(job, self._dispatcher.begin, job, worker)

    def on_finished(self, worker: Worker, message: wire.Finished, body: bytes | memoryview | None) -> None:
        job = self._job_of(worker, message.job)
        if job is None:
            if message.job in worker.jobs:
                self._give_back(worker, message.job, message.memory, spoke=True)
                if message.path is not None:
                    # It was cancelled a moment too late: its client does not know of the file.
                    self._context.effects.append(SettleOutput(message.job, message.path, wanted=False))
            return
        elsewhere = message.path is not None or message.result is not None
        if (body is None) == (not job.streams and not elsewhere):
            self.violation(worker, "a file is missing, or sent where none is wanted", [job.id])
            return
        # Without its file a later request would get a stream that it never heard as done.
        if job.streams and not (elsewhere or message.problem) and self._dispatcher.result_path(job) is not None:
            self.violation(worker, "a stream was not kept, and no reason was given", [job.id])
            return
        if job.streams and message.chunks != job.attempt.chunks:
            self.violation(worker, f"a stream of {message.chunks} chunks, of which {job.attempt.chunks} came", [job.id])
            return
        job.attempt.tell_work(message.work_s, self._context.now)
        self._give_back(worker, job.id, message.memory, spoke=True)
        now = self._context.now
        # Nothing is learnt from an earlier attempt's work, nor from a worker that may have stood still with the daemon.
        if message.synthesis_s > 0.0 and not job.attempt.stood_still:
            active_s = job.attempt.active_s(now)
            if job.attempt.slots == 1:
                self._estimator.learn(job, max(active_s, message.synthesis_s))
            elif work_s := job.attempt.work_s(now):
                self._estimator.learn(job, active_s, max(1.0, active_s / work_s))
        if self._retries.quarantine:
            self._retries.quarantine.clear(self._retries.content(job))
        if message.problem and self._must_wait_for_disk(job, message.problem):
            self._retries.leave_followers(job, "the result could not be written")
            self._retries.take_back(job)
            self._durable_jobs.wait_for_disk(job)
            return
        engine = worker.process.ready.engine if worker.process.ready else ""
        first_audio_s = message.first_audio_s + job.waited_s
        if job.attempt.first_audio_at is not None:
            first_audio_s = job.attempt.first_audio_at - job.accepted_at
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

    def _must_wait_for_disk(self, job: Job, problem: str) -> bool:
        """Whether a result that could not be written is lost. Of a stream that can be followed it is: it was sent to no
        request that wants it whole."""
        return not self._durable_jobs.not_kept(job, problem) or (job.request.follow and job.streams)

    def on_failed(self, worker: Worker, message: wire.Failed) -> None:
        # The failure of a step that jobs share names none.
        job = self._job_of(worker, message.job) if message.job or not message.fatal else None
        if message.fatal:
            # FAILED: it broke the protocol, and its end is decided already.
            if worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
                cause = CAUSE_OF_CODE.get(message.code, Cause.CRASHED)
                named = [message.job] if message.job else [id for id in message.suspects if id in worker.process.begun]
                self._pool.fail(worker, cause, message.reason or message.code, patient=True)
                self._retries.failed(worker, named or None)
            return
        if job is not None:
            job.attempt.tell_work(message.work_s, self._context.now)
        if message.job in worker.jobs:
            self._give_back(worker, message.job, message.memory, spoke=False)
        if job is not None:
            try:
                code = ErrorCode(message.code)
            except ValueError:
                code = ErrorCode.SYNTHESIS_FAILED
            if code is ErrorCode.WORKER_CRASHED and job.request.follow and job.attempt.chunks:
                # It made other audio than the worker before it.
                self._completion.guarded(job, self._retries.wait_again, job, message.message)
                return
            self._completion.fail(job, code, message.message, reason=message.reason or message.code)

    def on_suspended(self, worker: Worker, message: wire.Suspended) -> None:
        """A worker has suspended a job."""
        job = self._job_of(worker, message.job)
        if message.job not in worker.jobs:
            return
        may_wait = message.waits and (job is None or job.pieces is not None)
        if message.job in worker.process.suspended or (message.job not in worker.process.to_suspend and not may_wait):
            self.violation(worker, f"suspended {message.job!r} without being asked to", [message.job])
            return
        # What was sent meanwhile, it has not read yet.
        without_text = message.waits and job is not None and job.attempt.texts == message.texts
        if job is not None:
            job.attempt.tell_work(message.work_s, self._context.now)
            self._dispatcher.preemption.suspended(job, without_text=without_text)
        if job is None and message.waits:
            # It was cancelled. If that was not sent, the worker would wait for text without end.
            self._context.effects.append(Tell(worker.incarnation, wire.CancelJob(job=message.job)))
        begun = self._pool.suspended(worker, message.job, message.memory, without_text=without_text)
        self._begin_ready(begun, worker)
        if job is not None:
            self._notifications.note("suspended", job)

    def on_trimmed(self, worker: Worker, message: wire.Trimmed) -> None:
        self._recycler.on_trimmed(worker, message.memory)

    def on_bye(self, worker: Worker, message: wire.Bye) -> None:
        self._context.log("debug", "worker says goodbye", worker=worker.name, reason=message.reason)

    def on_ready(self, worker: Worker, message: wire.Ready) -> None:
        self._pool.on_ready(worker, message)
        self._recycler.on_ready(worker)

    # --- internal errors

    def is_through(self, worker: Worker, id: str) -> None:
        """The worker does not have this job, or no longer."""
        if id in worker.jobs:
            self._give_back(worker, id, None, spoke=False)

    def on_not_told(self, worker: Worker, message: wire.SupervisorMessage) -> None:
        """A message was not sent to a worker."""
        match message:
            case wire.SpeakJob(job=id) | wire.ResumeJob(job=id) | wire.AddText(job=id):
                if isinstance(message, wire.SpeakJob):
                    self.is_through(worker, id)
                if (job := self._job_table.live.get(id)) is not None:
                    self._completion.fail(job, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)
            case wire.SuspendJob(job=id):
                worker.process.to_suspend.discard(id)
            case wire.CancelJob(job=id) if id in worker.process.suspended or id in worker.process.to_suspend:
                # The worker would keep a suspended job for ever. Any other job ends by itself.
                self.violation(worker, "the cancel of a suspended job could not be sent", candidates=())
            case _:
                pass

    # --- deaths

    def on_ended(self, event: ProcessEnded) -> None:
        """A worker's process is gone."""
        ended = self._pool.on_ended(event.incarnation, event.returncode, event.last_words, oom_killed=event.oom_killed)
        if ended is not None:
            self._retries.decide(*ended, event.jobs)

    def on_recorder_read(self, event: RecorderRead) -> None:
        """The flight recorder of a process that has failed was read."""
        if (worker := self._pool.failed(event.incarnation)) is not None:
            self._retries.decide(worker, worker.process, event.jobs)

    def on_start_timeout(self, name: str) -> None:
        self._pool.on_start_timeout(name)

    def on_hang_check(self, name: str) -> None:
        worker = self._pool.workers[name]
        stalled = hang_check.stalled(self._context, worker)
        if hang_check.check(self._pool, self._context, worker):
            self._retries.failed(worker, stalled)


_HANDLERS: dict[type, Callable[..., None]] = {
    wire.Ready: lambda self, worker, message, _: self.on_ready(worker, message),
    wire.Hello: lambda *_: None,
    wire.Beats: lambda self, worker, message, _: self.on_beats(worker, message),
    wire.SegmentDone: lambda self, worker, message, _: self.on_segment(worker, message),
    wire.AudioChunk: WorkerMessages.on_audio,
    wire.Finished: WorkerMessages.on_finished,
    wire.Failed: lambda self, worker, message, _: self.on_failed(worker, message),
    wire.Suspended: lambda self, worker, message, _: self.on_suspended(worker, message),
    wire.Trimmed: lambda self, worker, message, _: self.on_trimmed(worker, message),
    wire.Bye: lambda self, worker, message, _: self.on_bye(worker, message),
}
