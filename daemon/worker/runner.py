"""The worker's loop: it reads messages, has the engine do a step, and sends the results, for all jobs at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from glmtts.protocol.worker import (
    AddText,
    CancelJob,
    Check,
    Checked,
    Finished,
    JobProgress,
    ResumeJob,
    SpeakJob,
    StopWorker,
    SupervisorMessage,
    Suspended,
    SuspendJob,
    Trim,
    Trimmed,
    WorkerProtocolError,
)

from ..engines.base import BatchEngine, Broken, Ended, Handle, Piece, SharedStepError, Spoken, Utterance
from ..storage import outputs
from . import log
from .connection import SupervisorConnection
from .failures import exit_code, failed
from .helper import Helper
from .job import Job
from .maintenance import Maintenance
from .preparation import Preparation
from .progress import JobCancelledError, Pulse
from .sinks import Chunk, deliver
from .speech import Speech, finished_before

if TYPE_CHECKING:
    from ..confinement import Confinement

T = TypeVar("T")
#: Pieces of a job that may wait for the helper.
_AHEAD = 2


class JobRunner:
    """Owns an engine and the jobs at hand. Each job ends with exactly one Finished or Failed.

    Messages only mark jobs; the runner acts on the marks between two steps of the engine. An error of one job ends that
    job alone, unless it is one of which the process must end.
    """

    def __init__(
        self,
        engine: BatchEngine,
        connection: SupervisorConnection,
        *,
        slots: int = 0,
        default_sample_rate: int = 24_000,
        recording_min_s: float = 1.0,
        recording_max_s: float = 30.0,
        confined: Confinement | None = None,
        record: Callable[[str, Collection[str]], None] | None = None,
    ) -> None:
        """``slots``: at most this many jobs at once; 0: as many as the engine takes. ``record``: notes for the flight
        recorder.
        """
        self._engine = engine
        self._confined = confined
        self._connection = connection
        self.slots = min(engine.slots, slots or engine.slots)
        self._preparation = Preparation(
            engine,
            default_rate=default_sample_rate,
            recording_min_s=recording_min_s,
            recording_max_s=recording_max_s,
        )
        self.maintenance = Maintenance(engine, self._preparation, default_sample_rate)
        self._pulse = Pulse(connection, self._take, self._progress)
        self._helper = Helper()
        self._note_to = record
        if record is not None:
            engine.record = self._note
        self._jobs: dict[str, Job] = {}
        #: Jobs that have a slot, and jobs with a mark that was not acted on yet.
        self._active: dict[str, Job] = {}
        self._marked: dict[str, Job] = {}
        self._by_handle: dict[Handle, Job] = {}
        #: Messages and jobs that wait for their turn; a job waits for a slot.
        self._queue: deque[Job | Check | Trim | StopWorker] = deque()
        self._warmup_text = ""
        self._stopped = False
        #: Whether the engine has something to do that it does not know of yet.
        self._must_step = False
        self._code = 0

    # --- the loop

    def run(self, warmup_text: str) -> int:
        """Speak until the supervisor sends ``stop``, or SIGTERM comes. ``warmup_text``: the sentence for checks.

        Returns the exit code with which the process must end, or 0. Raises WorkerProtocolError.
        """
        self._warmup_text = warmup_text
        while True:
            self._pulse.read()
            if self._marked or self._queue:
                self._settle()
            if self._code or self._stopped or self._connection.terminated:
                break
            if not self._must_step and (idle_s := self._engine.idle_s()) != 0:
                self._wait(idle_s)
                # A step follows each wait: a message has come, or the engine's work is done.
                self._must_step = True
                continue
            self._must_step = False
            self._step()
            if self._active:
                self._pulse.beat()
        if not self._code:
            for job in [*self._active.values(), *(job for job in self._jobs.values() if job.suspended)]:
                self._fail(job, JobCancelledError())
        return self._code

    def _wait(self, idle_s: float | None) -> None:
        self._note("wait")
        if self._active:
            due_s = self._pulse.due_s()
            idle_s = due_s if idle_s is None else min(idle_s, due_s)
        self._connection.wait(idle_s, self._engine.fileno(), self._helper.fd if self.slots > 1 else None)

    def _step(self) -> None:
        if self.slots > 1:
            self._helper.collect()
        try:
            events = self._engine.advance()
        except WorkerProtocolError:
            raise
        except Exception as error:
            self._step_failed(error)
            return
        if not events:
            return
        if self.slots > 1:
            # From here to the next note, no job is to blame if the process dies.
            self._note("send")
        for event in events:
            if not isinstance(event, Spoken) and (job := self._by_handle.get(event.handle)):
                job.over = True
        for event in events:
            # An error in an earlier event may have ended the job.
            if (job := self._by_handle.get(event.handle)) is None:
                continue
            match event:
                case Spoken():
                    self._attempt(job, self._spoken, job, event.piece)
                case Ended():
                    self._attempt(job, self._ended, job)
                case Broken():
                    self._fail(job, event.error)
        for job in self._by_handle.values():
            if self._is_ahead(job):
                self._mark(job)
                self._hold(job)

    def _step_failed(self, error: Exception) -> None:
        """Report a step that failed, and end the process. The step's jobs are suspects, unless there was only one."""
        jobs = [job.id for job in self._by_handle.values() if not (job.over or job.suspended or job.held)]
        if isinstance(error, SharedStepError):
            jobs = error.jobs
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        only = jobs[0] if len(jobs) == 1 else ""
        message = failed(only, error)
        message.fatal, message.memory = True, self.maintenance.memory()
        message.suspects = [] if only else jobs
        self._connection.send(message)
        self._code = exit_code(message)

    # --- messages

    def _take(self, message: SupervisorMessage, body: bytes | None) -> None:
        """Mark the job that a message is about. The engine may be in the middle of a step."""
        if not isinstance(message, SpeakJob | AddText | CancelJob | SuspendJob | ResumeJob):
            self._queue.append(message)
            return
        if isinstance(message, SpeakJob):
            self._jobs[message.job] = job = Job(message, body, self._pulse.read)
            self._queue.append(job)
            return
        known = self._jobs.get(message.job)
        if known is None:
            return
        match message:
            case AddText() if known.feed is not None:
                known.feed.add(message)
            case CancelJob():
                known.cancelled = True
                self._mark(known)
            case SuspendJob() if not known.suspended or known.resumes:
                known.to_suspend = True
                self._mark(known)
            case ResumeJob() if known.suspended and not known.resumes:
                known.resumes = True
                self._queue.append(known)
            case _:
                pass

    def _mark(self, job: Job) -> None:
        self._marked[job.id] = job

    def _wanted(self, job: Job) -> bool:
        return not (job.cancelled or self._connection.terminated)

    def _is_unwanted(self, job: Job) -> bool:
        """Read new messages, and return whether the job is cancelled; for an engine in the middle of a step."""
        self._pulse.look()
        return not self._wanted(job)

    # --- between two steps

    def _settle(self) -> None:
        """Act on the marks, and begin the jobs and messages whose turn has come."""
        if self._connection.terminated:
            return
        for job in list(self._marked.values()):
            # A job that waits for its first slot ends at its turn.
            if job.begun_at is not None and not job.ends:
                self._act(job)
        while self._queue and not self._stopped and not self._code and self._begin_next(self._queue[0]):
            pass

    def _act(self, job: Job) -> None:
        if job.cancelled:
            self._fail(job, JobCancelledError())
            return
        if job.suspended or job.handle is None or job.over:
            return
        # With a single slot the engine may be a generator, which stops where a segment ended.
        if job.lacks_text or (job.to_suspend and (job.at_boundary or self.slots > 1)):
            self._hold(job)
            if not job.pending:
                self._suspend(job)
            return
        if job.waits:
            job.waits, self._must_step = False, True
        if job.held and not self._is_ahead(job):
            job.held = False
            self._engine.resume(job.handle)
        if not (job.to_suspend or job.held):
            del self._marked[job.id]

    def _is_ahead(self, job: Job) -> bool:
        """Whether the job has more audio than can be encoded or sent now."""
        return job.pending > _AHEAD or self._connection.has_unsent(job.id)

    def _hold(self, job: Job) -> None:
        """Have the engine do nothing for a job that keeps its slot."""
        if not (job.held or job.suspended or job.over or job.handle is None):
            job.held = True
            self._engine.suspend(job.handle)

    def _begin_next(self, task: Job | Check | Trim | StopWorker) -> bool:
        """Begin the next of the queue. Returns whether its turn has come."""
        if isinstance(task, Job):
            if task.id not in self._jobs:
                self._queue.popleft()
                return True
            if len(self._active) >= self.slots:
                return False
        elif self._active and not isinstance(task, Trim):
            return False
        self._queue.popleft()
        match task:
            case Job():
                if not self._active:
                    self._pulse.restart()
                self._active[task.id] = task
                self._attempt(task, self._resume if task.suspended else self._begin, task)
            case Check():
                problem, self._code = self.maintenance.check(self._warmup_text)
                self._connection.send(Checked(check=task.check, problem=problem))
            case Trim():
                self.maintenance.trim()
                self._connection.send(Trimmed(memory=self.maintenance.memory()))
            case StopWorker():
                self._stopped = True
        return True

    # --- a job, from its begin to its end

    def _begin(self, job: Job) -> None:
        job.begin()
        if not self._wanted(job):
            raise JobCancelledError
        message = job.message
        rate = self._preparation.rate(message)
        written = message.output or message.result
        if written and self._confined and self._confined.has_lost(folder := Path(written).parent):
            log.say(log.WARNING, f"{folder} was replaced; this worker can't write there and ends for another", job.id)
            self._connection.terminate()
            raise JobCancelledError
        if message.output is not None:
            earlier = outputs.delivered(Path(message.output), job.id)
            if earlier is not None:
                self._leave(job)
                voice = message.voice or ("" if job.body is not None else self._preparation.voice(None) or "")
                memory = self.maintenance.memory()
                self._connection.send(finished_before(message, earlier, rate=rate, voice=voice, memory=memory))
                return
            outputs.check_absent(Path(message.output))
        has_recording = job.body is not None or message.recording is not None
        self._note("prepare", (job.id,))
        self._do(
            job,
            lambda: self._preparation.utterance(message, job.body, rate),
            lambda utterance: self._prepared(job, utterance, rate),
            is_work=has_recording,
        )

    def _prepared(self, job: Job, utterance: Utterance, rate: int) -> None:
        assert job.begun_at is not None
        job.body = None
        utterance.beat, utterance.cancelled, utterance.more = self._pulse.look, lambda: self._is_unwanted(job), job.feed
        job.speech = Speech(job.message, utterance, rate, job.begun_at)
        job.handle = self._engine.begin(utterance)
        self._by_handle[job.handle] = job

    def _spoken(self, job: Job, piece: Piece) -> None:
        if not self._wanted(job):
            raise JobCancelledError
        if piece.waits:
            job.waits = True
            self._mark(job)
            return
        speech = job.speech
        assert speech is not None
        speech.check(piece)
        job.at_boundary = piece.ends_segment and job.goes_on(piece)
        boundary = speech.boundary(piece, in_pieces=job.feed is not None)

        def heard(chunks: list[Chunk]) -> None:
            self._send(chunks)
            speech.heard()
            if boundary is not None:
                self._connection.send(boundary)

        self._encode(job, lambda: speech.encode(piece.samples), heard)

    def _ended(self, job: Job) -> None:
        # An engine that notices the cancellation in the middle of a step simply returns.
        if not self._wanted(job):
            raise JobCancelledError
        speech, handle = job.speech, job.handle
        assert speech is not None and handle is not None
        # The engine has no further step for the job.
        del self._by_handle[handle]

        def finished(made: tuple[list[Chunk], bytes | None]) -> None:
            chunks, file = made
            self._send(chunks)
            message = speech.finished(self.maintenance.memory(), job.work_s)
            if file is None:
                self._finish(job, message, None)
                return
            job.ends = True
            self._do(
                job,
                lambda: deliver(job.message, file, message),
                lambda rest: self._finish(job, message, rest),
                is_work=speech.is_work or bool(job.message.output or job.message.result),
            )

        self._encode(job, speech.finish, finished)

    def _encode(self, job: Job, work: Callable[[], T], then: Callable[[T], None]) -> None:
        assert job.speech is not None
        if job.speech.is_work:
            self._note("encode", (job.id,))
        self._do(job, work, then, is_work=job.speech.is_work)

    def _finish(self, job: Job, message: Finished, file: bytes | None) -> None:
        self._leave(job)
        self._connection.send(message, file)

    def _suspend(self, job: Job) -> None:
        assert job.speech is not None
        waits = job.lacks_text
        job.suspended, job.held, job.to_suspend, job.waits = True, False, False, False
        job.speech.stop_clock()
        del self._active[job.id], self._marked[job.id]
        taken = job.feed.taken if job.feed else 0
        self._connection.send(
            Suspended(job=job.id, memory=self.maintenance.memory(), waits=waits, texts=taken, work_s=job.work_s)
        )

    def _resume(self, job: Job) -> None:
        assert job.speech is not None and job.handle is not None
        job.suspended = job.resumes = job.at_boundary = False
        job.speech.start_clock()
        if not self._wanted(job):
            raise JobCancelledError
        self._engine.resume(job.handle)

    def _send(self, chunks: list[Chunk]) -> None:
        for message, body in chunks:
            self._connection.send(message, body)

    # --- work and errors

    def _do(self, job: Job, work: Callable[[], T], then: Callable[[T], None], *, is_work: bool) -> None:
        """Do ``work`` for a job, and call ``then`` with its result.

        ``is_work``: it takes milliseconds, so a helper thread does it; with a single slot this thread does, as it has
        no other job. Raises the exceptions of ``work`` and ``then``.
        """
        if not is_work or self.slots == 1:
            then(work())
            return
        job.pending += 1

        def done(future: Future[T]) -> None:
            job.pending -= 1
            # The job may have ended meanwhile.
            if self._jobs.get(job.id) is job:
                self._attempt(job, lambda: then(future.result()))

        self._helper.submit(job.id, work, done)

    def _attempt(self, job: Job, work: Callable[..., None], *given: Any) -> None:
        """Do ``work`` for a job; an exception ends the job."""
        try:
            work(*given)
        except WorkerProtocolError:
            raise
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job that failed or was cancelled."""
        message = failed(job.id, error, terminated=self._connection.terminated)
        # A broken engine could hang in ``cancel``.
        code = exit_code(message)
        if not code and job.handle is not None and not job.over:
            try:
                self._engine.cancel(job.handle)
            except Exception as other:
                # The job ends in any case.
                log.report(other, job.id)
        if isinstance(error, JobCancelledError):
            self._connection.drop_audio(job.id)
        message.work_s, message.memory = job.work_s, self.maintenance.memory()
        self._leave(job)
        self._connection.send(message)
        self._code = self._code or code

    def _leave(self, job: Job) -> None:
        """Forget a job that has ended."""
        for jobs in (self._jobs, self._active, self._marked):
            jobs.pop(job.id, None)
        if job.handle is not None:
            self._by_handle.pop(job.handle, None)
        # Both refer back to the job: without the cycle, it is freed at once with its audio.
        job.handle = job.speech = None

    # --- notes and progress

    def _note(self, stage: str, jobs: Collection[str] = ()) -> None:
        """Note a stage for the flight recorder, with its jobs and those in helper threads: any may be to blame."""
        if self._note_to is not None:
            helped = [job.id for job in self._active.values() if job.pending] if self.slots > 1 else []
            self._note_to(stage, (*jobs, *helped))

    def _progress(self) -> list[JobProgress]:
        return [
            JobProgress(job.id, job.handle.done, job.handle.expected, job.handle.work_s)
            for job in self._active.values()
            if job.handle is not None
        ]
