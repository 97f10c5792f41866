"""The failures of commands: their words for people, their JSON for programs, and their exit codes."""

from __future__ import annotations

from typing import Any

import click

from glmtts.protocol.system_words import error_in_words

FAILED = 1
USAGE = 2
NOT_READY = 3
JOB_FAILED = 4
TIMED_OUT = 124

#: The daemon can't work now, whatever the request.
_NOT_READY_CODES = frozenset({"unavailable", "shutting_down"})

#: A request about a job is refused; the job itself has not ended.
_REFUSALS = frozenset({"bad_request", "forbidden", "job_not_found", "too_large"})


class Failure(click.ClickException):
    """A command fails for a reason of its own; ``details`` go into the JSON answer."""

    def __init__(self, message: str, *, code: str = "failed", status: int = FAILED, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.details = details


class Finished(click.exceptions.Exit):
    """The command has printed everything and ends with ``status``."""


def exit_code(error: Exception) -> int:
    """The exit code for an error that a command raised."""
    from glmtts.client import ConnectionLost, DaemonNotRunning, RequestFailed, Timeout

    match error:
        case Failure():
            return error.status
        case click.ClickException():
            return error.exit_code
        case click.Abort():
            return 130
        case RequestFailed() if error.code in _NOT_READY_CODES:
            return NOT_READY
        case RequestFailed() if error.job and error.code not in _REFUSALS:
            return JOB_FAILED
        case DaemonNotRunning() | ConnectionLost():
            return NOT_READY
        case Timeout():
            return TIMED_OUT
        case _:
            return FAILED


def describe(error: Exception) -> dict[str, Any]:
    """The failure as the ``error`` map of ``--json``."""
    from glmtts.client import ConnectionLost, DaemonNotRunning, GlmttsError, RequestFailed, Timeout, UntrustedDaemon

    match error:
        case Failure():
            return {"code": error.code, "message": error.message, **error.details}
        case click.ClickException():
            return {"code": "usage", "message": error.format_message()}
        case click.Abort():
            return {"code": "interrupted", "message": "interrupted"}
        case OSError():
            return {"code": "failed", "message": error_in_words(error)}
        case RequestFailed():
            described = {"code": str(error.code), "message": error.message, "retryable": error.retryable}
            optional = {"retry_after_s": error.retry_after_s, "job": error.job or None}
            return described | {key: value for key, value in optional.items() if value is not None}
        case DaemonNotRunning():
            return {"code": "not_running", "message": str(error)}
        case UntrustedDaemon():
            return {"code": "untrusted", "message": str(error)}
        case ConnectionLost():
            return {"code": "connection_lost", "message": str(error)}
        case Timeout():
            return {"code": "timeout", "message": str(error)}
        case GlmttsError() | ValueError():
            return {"code": "failed", "message": str(error)}
        case _:
            raise error


#: Codes of this program, which add nothing to the message.
PLAIN_CODES = frozenset({"failed", "usage", "interrupted", "not_running", "untrusted", "connection_lost", "timeout"})
