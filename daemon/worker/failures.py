"""From an exception to the message that a job failed."""

from __future__ import annotations

from glmtts.protocol import exit_codes
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import Failed

from ..engines import cuda_errors
from ..engines.base import EngineError
from ..storage import outputs
from . import log
from .progress import JobCancelledError


def failed(job: str, error: Exception, *, terminated: bool = False) -> Failed:
    """The message for this error; one of which the process must end is fatal. ``terminated``: SIGTERM came."""
    match error:
        case JobCancelledError() if terminated:
            message = Failed(job=job, code="cancelled", message="the worker received SIGTERM", fatal=True)
        case JobCancelledError():
            message = Failed(job=job, code="cancelled", message="cancelled")
        case EngineError():
            reason = f"the engine said {error.code}" if error.quotes else error.message
            message = Failed(job=job, code=error.code, message=error.message, reason=reason, fatal=error.fatal)
        case outputs.OutputExistsError():
            message = Failed(job=job, code="output_exists", message=str(error))
        case outputs.OutputError():
            message = Failed(job=job, code="output_failed", message=str(error))
        case _:
            log.report(error, job)
            code = cuda_errors.fatal_kind(error) or "synthesis_failed"
            words = log.in_words(error)[:500]
            message = Failed(job=job, code=code, message=words, reason=log.safe_words(error))
    if message.code in exit_codes.OF_FATAL_ERROR:
        # Without the memory, or with a broken context, the next jobs would fail too.
        message.fatal = True
    # The other messages are ours and quote nothing.
    message.reason = message.reason or message.message
    return message


def exit_code(message: Failed) -> int:
    """The code with which the process must end after this message; 0: it goes on."""
    if not message.fatal or message.code == ErrorCode.CANCELLED:
        return 0
    return exit_codes.OF_FATAL_ERROR.get(message.code, exit_codes.ENGINE_BROKEN)
