"""Runs jobs: begins, suspends at a segment boundary, resumes; each ends with exactly one Finished or Failed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from glmtts.protocol import exit_codes
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import Checked, Failed, Finished, Memory, SpeakJob, Suspended, WorkerProtocolError

from ..engines import cuda_errors
from ..engines.base import Engine, EngineError
from ..storage import outputs
from . import audio, log
from .connection import SupervisorConnection
from .job import RunningJob
from .preparation import Preparation
from .progress import Heartbeat, JobCancelledError
from .sinks import describe
from .text_feed import TextFeed

if TYPE_CHECKING:
    from ..confinement import Confinement

_PAGE_BYTES = resource.getpagesize()


class JobRunner:
    """Owns an engine and the suspended jobs; runs one job at a time."""

    def __init__(
        self,
        engine: Engine,
        connection: SupervisorConnection,
        *,
        default_sample_rate: int = 24_000,
        recording_min_s: float = 1.0,
        recording_max_s: float = 30.0,
        confined: Confinement | None = None,
    ) -> None:
        self._engine = engine
        self._confined = confined
        self._connection = connection
        self._default_rate = default_sample_rate
        self._preparation = Preparation(
            engine,
            default_rate=default_sample_rate,
            recording_min_s=recording_min_s,
            recording_max_s=recording_max_s,
        )
        self._suspended: dict[str, RunningJob] = {}
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def warm_up(self, text: str) -> None:
        """Speak ``text`` and discard it, at the rate that jobs have, so that the first job finds everything loaded."""
        if not text:
            return
        utterance = self._preparation.warm_up(text)
        native, rate = utterance.sample_rate, self._default_rate
        resampler = None if native == rate else audio.Resampler(native, rate)
        for piece in self._engine.synthesize(utterance):
            if resampler:
                resampler.add(piece.samples)

    def check(self, check: str, text: str) -> int:
        """Speak ``text``, discard it, and report whether that worked. Returns an exit code as :meth:`run` does."""
        try:
            self.warm_up(text)
        except Exception as error:
            failed = self._failed("", error)
            self._connection.send(Checked(check=check, problem=failed.message))
            return exit_codes.OF_FATAL_ERROR.get(failed.code, exit_codes.ENGINE_BROKEN) if failed.fatal else 0
        self._connection.send(Checked(check=check))
        return 0

    def memory(self) -> Memory:
        """The memory of the process and of its engine now."""
        figures = self._engine.memory()
        return Memory(
            rss=int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES,
            torch_allocated=figures.torch_allocated,
            torch_reserved=figures.torch_reserved,
        )

    def run(self, job: SpeakJob, body: bytes | None) -> int:
        """Speak ``job`` until it ends or is suspended, and report which. ``body``: the recording of its prompt.

        Returns the exit code with which the process must end, or 0.
        """
        return self._attempt(job.job, lambda: self._begin(job, body))

    def resume(self, job: str) -> int:
        """Resume a suspended job, as :meth:`run` does."""
        running = self._suspended.pop(job)
        running.resume()
        return self._attempt(job, lambda: self._speak(job, running))

    def cancel(self, job: str) -> None:
        """Cancel a suspended job."""
        try:
            self._suspended.pop(job).close()
        except Exception as error:
            # The job ends as cancelled in any case.
            log.report(error, job)
        self._connection.send(self._failed(job, JobCancelledError()))

    def cancel_all(self) -> None:
        """Cancel all suspended jobs, before the process ends."""
        for job in list(self._suspended):
            self.cancel(job)

    def _attempt(self, job: str, work: Callable[[], None]) -> int:
        try:
            work()
        except WorkerProtocolError:
            raise
        except Exception as error:
            failed = self._failed(job, error)
            self._connection.send(failed)
            if failed.fatal and failed.code != ErrorCode.CANCELLED:
                return exit_codes.OF_FATAL_ERROR.get(failed.code, exit_codes.ENGINE_BROKEN)
        return 0

    def _begin(self, job: SpeakJob, body: bytes | None) -> None:
        begun = time.perf_counter()
        heartbeat = Heartbeat(job.job, self._connection)
        if not self._connection.wanted(job.job):
            raise JobCancelledError
        rate = self._preparation.rate(job)
        written = job.output or job.result
        if written and self._confined and self._confined.has_lost(folder := Path(written).parent):
            log.say(log.WARNING, f"{folder} was replaced; this worker can't write there and ends for another", job.job)
            self._connection.terminate()
            raise JobCancelledError
        if job.output is not None:
            earlier = outputs.delivered(Path(job.output), job.job)
            if earlier is not None:
                self._connection.send(self._delivered(job, earlier, rate, is_cloned=body is not None))
                return
            outputs.check_absent(Path(job.output))
        utterance = self._preparation.utterance(job, body, rate, heartbeat)
        utterance.more = feed = TextFeed(job.job, self._connection) if job.more else None
        running = RunningJob(
            job, self._engine, utterance, self._connection, rate=rate, heartbeat=heartbeat, begun=begun, feed=feed
        )
        self._speak(job.job, running)

    def _speak(self, job: str, running: RunningJob) -> None:
        connection = self._connection
        while (piece := running.step()) is not None:
            for other in connection.take_cancelled_suspended():
                self.cancel(other)
            feed = running.feed
            goes_on = piece.segment + 1 < piece.segments or (feed is not None and not feed.complete)
            asked = piece.ends_segment and goes_on and connection.suspension_requested(job)
            waits = piece.waits and not connection.has_text(job)
            if (asked or waits) and connection.wanted(job):
                running.suspend()
                self._suspended[job] = running
                connection.suspend()
                taken = feed.taken if feed is not None else 0
                connection.send(Suspended(job=job, memory=self.memory(), waits=waits, texts=taken))
                return
        finished, file = running.finish(self.memory)
        connection.send(finished, file)

    def _delivered(self, job: SpeakJob, file: bytes, rate: int, *, is_cloned: bool) -> Finished:
        """The end of a job whose output an earlier attempt wrote before its worker died."""
        finished = Finished(
            job=job.job,
            sample_rate=rate,
            audio_s=audio.duration_s(file, job.format, rate),
            synthesis_s=0.0,
            first_audio_s=0.0,
            voice=job.voice or ("" if is_cloned else self._preparation.voice(None) or ""),
            sha256="",
            chunks=0,
            bytes=0,
            path=job.output,
            memory=self.memory(),
        )
        describe(finished, file)
        return finished

    def _failed(self, job: str, error: Exception) -> Failed:
        match error:
            case JobCancelledError() if self._connection.terminated:
                failed = Failed(job=job, code="cancelled", message="the worker received SIGTERM", fatal=True)
            case JobCancelledError():
                failed = Failed(job=job, code="cancelled", message="cancelled")
            case EngineError():
                reason = f"the engine said {error.code}" if error.quotes else error.message
                failed = Failed(job=job, code=error.code, message=error.message, reason=reason, fatal=error.fatal)
            case outputs.OutputExistsError():
                failed = Failed(job=job, code="output_exists", message=str(error))
            case outputs.OutputError():
                failed = Failed(job=job, code="output_failed", message=str(error))
            case _:
                log.report(error, job)
                code = cuda_errors.fatal_kind(error) or "synthesis_failed"
                words = log.in_words(error)[:500]
                failed = Failed(job=job, code=code, message=words, reason=log.safe_words(error))
        if failed.code in exit_codes.OF_FATAL_ERROR:
            # Without the memory, or with a broken context, the next jobs would fail too.
            failed.fatal = True
        # The other messages are ours and quote nothing.
        failed.reason = failed.reason or failed.message
        failed.memory = self.memory()
        return failed
