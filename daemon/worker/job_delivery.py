"""Where the finished file of a job goes: to its output, to the results that are kept, or to the supervisor."""

from __future__ import annotations

import hashlib
from pathlib import Path

from glmtts.protocol.worker import Finished, Job

from ..storage import outputs
from . import log


def deliver(job: Job, file: bytes, finished: Finished) -> bytes | None:
    """Put ``file`` where ``job`` wants it, and say in ``finished`` what is there; returns it if it is to be sent.

    Raises OutputError for an output that can't be written; a result that can't be is sent instead.
    """
    if job.output is not None:
        there = outputs.write_new(Path(job.output), file, job.job)
        if there is not file:
            describe(finished, there)
        return None
    if job.result is not None:
        try:
            # Somebody may have tidied up.
            Path(job.result).parent.mkdir(mode=0o700, exist_ok=True)
            outputs.replace(Path(job.result), file)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            finished.problem = f"{reason} ({Path(job.result).parent})"
            words = f"its result is sent, because it can't be kept in {job.result}: {reason}"
            log.say(log.WARNING, words, job.job)
        else:
            finished.result = job.result
            return None
    # What was streamed has been sent.
    return None if job.stream else file


def describe(finished: Finished, file: bytes) -> None:
    """Say of the file that is there what it is."""
    finished.bytes = len(file)
    finished.sha256 = hashlib.sha256(file).hexdigest()
