"""Run jobs: speak one, put it aside at a border for another, go on with it; each ends with one Finished or Failed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from glmtts.protocol import exit_codes
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import Checked, Failed, Finished, Job, Memory, Suspended, WorkerProtocolError

from ..engines import cuda_errors
from ..engines.base import Engine, EngineError, Piece
from ..storage import outputs
from . import audio, log
from .connection import Wire
from .job import JobSpeech
from .preparation import Preparation
from .progress import NotWantedError, Progress
from .sinks import describe

_PAGE_BYTES = resource.getpagesize()


class JobRunner:
    """Runs jobs on an engine, one at a time; those that are put aside wait until they are asked for."""

    def __init__(
        self,
        engine: Engine,
        wire: Wire,
        *,
        default_sample_rate: int = 24_000,
        recording_min_s: float = 1.0,
        recording_max_s: float = 30.0,
    ) -> None:
        self._engine = engine
        self._wire = wire
        self._default_rate = default_sample_rate
        self._preparation = Preparation(
            engine,
            default_rate=default_sample_rate,
            recording_min_s=recording_min_s,
            recording_max_s=recording_max_s,
        )
        self._aside: dict[str, JobSpeech] = {}
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def warm_up(self, text: str) -> None:
        """Speak ``text`` for nobody, in the rate that jobs have, so that the first job finds everything loaded."""
        if not text:
            return
        utterance = self._preparation.warm_up(text)
        native, rate = utterance.sample_rate, self._default_rate
        resampler = None if native == rate else audio.Resampler(native, rate)
        for piece in self._engine.synthesize(utterance):
            if resampler:
                resampler.add(piece.samples)

    def check(self, check: str, text: str) -> int:
        """Speak ``text`` for nobody, and say whether that went well. Returns an exit code as :meth:`run` does."""
        try:
            self.warm_up(text)
        except Exception as error:
            failed = self._failed("", error)
            self._wire.send(Checked(check=check, problem=failed.message))
            return exit_codes.OF_FATAL_ERROR.get(failed.code, exit_codes.ENGINE_BROKEN) if failed.fatal else 0
        self._wire.send(Checked(check=check))
        return 0

    def memory(self) -> Memory:
        """What the process and its engine hold now."""
        figures = self._engine.memory()
        return Memory(
            rss=int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES,
            torch_allocated=figures.torch_allocated,
            torch_reserved=figures.torch_reserved,
        )

    def run(self, job: Job, body: bytes | None) -> int:
        """Speak ``job`` to its end, or until it is put aside, and say which.

        Returns an exit code when the process can't go on, else 0.
        """
        return self._attempt(job.job, lambda: self._begin(job, body))

    def resume(self, job: str) -> int:
        """Go on with a job that was put aside, as :meth:`run` does."""
        speech = self._aside.pop(job)
        return self._attempt(job, lambda: self._speak(job, speech, go_on=True))

    def cancel(self, job: str) -> None:
        """End a job that was put aside."""
        try:
            self._aside.pop(job).close()
        except Exception as error:
            # Nobody waits for more of it than its end.
            log.report(error, job)
        self._wire.send(self._failed(job, NotWantedError()))

    def cancel_all(self) -> None:
        """End all jobs that were put aside: the process ends."""
        for job in list(self._aside):
            self.cancel(job)

    def _attempt(self, job: str, work: Callable[[], None]) -> int:
        try:
            work()
        except WorkerProtocolError:
            raise
        except Exception as error:
            failed = self._failed(job, error)
            self._wire.send(failed)
            if failed.fatal and failed.code != ErrorCode.CANCELLED:
                return exit_codes.OF_FATAL_ERROR.get(failed.code, exit_codes.ENGINE_BROKEN)
        return 0

    def _begin(self, job: Job, body: bytes | None) -> None:
        begun = time.perf_counter()
        progress = Progress(job.job, self._wire)
        if not self._wire.wanted(job.job):
            raise NotWantedError
        rate = self._preparation.rate(job)
        if job.output is not None:
            earlier = outputs.delivered(Path(job.output), job.job)
            if earlier is not None:
                self._wire.send(self._delivered(job, earlier, rate, is_cloned=body is not None))
                return
            outputs.check_absent(Path(job.output))
        utterance = self._preparation.utterance(job, body, rate, progress)
        self._speak(
            job.job, JobSpeech(job, self._engine, utterance, self._wire, rate=rate, progress=progress, begun=begun)
        )

    def _speak(self, job: str, speech: JobSpeech, *, go_on: bool = False) -> None:
        if go_on:
            speech.go_on()
        while (piece := speech.step()) is not None:
            for other in self._wire.take_cancelled_aside():
                self.cancel(other)
            if _is_border(piece) and self._wire.to_suspend(job) and self._wire.wanted(job):
                speech.put_aside()
                self._aside[job] = speech
                self._wire.put_aside()
                self._wire.send(Suspended(job=job, memory=self.memory()))
                return
        finished, file = speech.finish(self.memory)
        self._wire.send(finished, file)

    def _delivered(self, job: Job, file: bytes, rate: int, *, is_cloned: bool) -> Finished:
        """What is said of a job whose file an earlier attempt has put there before it died: nothing was spoken now."""
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
            case NotWantedError() if self._wire.terminated:
                failed = Failed(job=job, code="cancelled", message="the worker was told to end (SIGTERM)", fatal=True)
            case NotWantedError():
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
                code = cuda_errors.judge(error) or "synthesis_failed"
                words = log.in_words(error)[:500]
                failed = Failed(job=job, code=code, message=words, reason=log.safe_words(error))
        if failed.code in exit_codes.OF_FATAL_ERROR:
            # Whoever raised it: going on without the memory, or with a broken context, fails the next jobs too.
            failed.fatal = True
        # Our own words, but for those that were told apart above.
        failed.reason = failed.reason or failed.message
        failed.memory = self.memory()
        return failed


def _is_border(piece: Piece) -> bool:
    """Whether the job can be put aside behind this piece: more is to come, and the engine has said that it holds."""
    return piece.ends_segment and piece.segment + 1 < piece.segments
