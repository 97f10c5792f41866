"""The failures of commands: their words for people, their JSON for programs, and their exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from glmtts.client import RequestFailed

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
    if isinstance(error, Failure):
        return error.status
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, click.Abort):
        return 130
    if isinstance(error, OSError):
        return FAILED

    from glmtts.client import ConnectionLost, DaemonNotRunning, RequestFailed, Timeout

    if isinstance(error, RequestFailed):
        return _exit_code_of_request(error)
    if isinstance(error, (DaemonNotRunning, ConnectionLost)):
        return NOT_READY
    if isinstance(error, Timeout):
        return TIMED_OUT
    return FAILED


def _exit_code_of_request(error: RequestFailed) -> int:
    if error.code in _NOT_READY_CODES:
        return NOT_READY
    return JOB_FAILED if error.job and error.code not in _REFUSALS else FAILED


def describe(error: Exception) -> dict[str, Any]:
    """The failure as the ``error`` map of ``--json``."""
    if isinstance(error, Failure):
        return {"code": error.code, "message": error.message, **error.details}
    if isinstance(error, click.ClickException):
        return {"code": "usage", "message": error.format_message()}
    if isinstance(error, click.Abort):
        return {"code": "interrupted", "message": "interrupted"}
    if isinstance(error, OSError):
        return {"code": "failed", "message": _words(error)}

    from glmtts.client import ConnectionLost, DaemonNotRunning, GlmttsError, RequestFailed, Timeout

    if isinstance(error, RequestFailed):
        described: dict[str, Any] = {"code": str(error.code), "message": error.message, "retryable": error.retryable}
        if error.retry_after_s is not None:
            described["retry_after_s"] = error.retry_after_s
        if error.job:
            described["job"] = error.job
        return described
    if isinstance(error, DaemonNotRunning):
        return {"code": "not_running", "message": str(error)}
    if isinstance(error, ConnectionLost):
        return {"code": "connection_lost", "message": str(error)}
    if isinstance(error, Timeout):
        return {"code": "timeout", "message": str(error)}
    if isinstance(error, (GlmttsError, ValueError)):
        return {"code": "failed", "message": str(error)}
    raise error


def report(error: Exception, *, as_json: bool) -> None:
    """Print the failure: on stdout as JSON for a program, on stderr in words for a person.

    Raises ``error`` itself where it is unexpected: that is a bug, and its traceback is needed.
    """
    if as_json:
        click.echo(json.dumps({"error": describe(error)}, ensure_ascii=False))
        return
    if isinstance(error, click.UsageError):
        error.show()
        return
    if isinstance(error, click.Abort):
        click.echo("Interrupted.", err=True)
        return
    described = describe(error)
    code = described["code"]
    named = f" ({code})" if code not in _PLAIN_CODES else ""
    click.echo(f"glmttsctl: {described['message']}{named}", err=True)
    if "retry_after_s" in described:
        click.echo(f"Try again in {described['retry_after_s']:.1f} s.", err=True)


#: Codes of this program, which add nothing to the message.
_PLAIN_CODES = frozenset({"failed", "usage", "interrupted", "not_running", "connection_lost", "timeout"})


def _words(error: OSError) -> str:
    """``FILE: No such file or directory``, as other tools say it."""
    what = (error.strerror or str(error)) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what
