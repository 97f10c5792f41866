"""Errors as HTTP answers, in the form of OpenAI's API.

OpenAI's packages send a request again on 408, 409, 429 and 5xx, unless ``x-should-retry`` says otherwise, after
``retry-after-ms`` or ``retry-after`` (openai-python, ``_base_client.py``): both come from the daemon's error.
"""

from __future__ import annotations

import logging
import math
import re
import time

from starlette.responses import JSONResponse

from glmtts.client import ConnectionLost, DaemonNotRunning, GlmttsError, RequestFailed, Timeout
from glmtts.protocol.errors import ErrorCode

#: Statuses by the protocol's code; any other is 500.
_STATUS = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.VOICE_NOT_FOUND: 400,
    ErrorCode.BAD_AUDIO: 400,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.JOB_NOT_FOUND: 404,
    ErrorCode.OUTPUT_EXISTS: 409,
    ErrorCode.CANCELLED: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.QUARANTINED: 422,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUEUE_FULL: 503,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.SHUTTING_DOWN: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}
#: Keys of the protocol that have another name over HTTP.
_PARAMS = {"text": "input", "format": "response_format", "key": "Idempotency-Key", "prompt": "ref_audio"}
#: A message of the daemon begins with the key at fault.
_FIELD = re.compile(r"([a-z_]+)(?:\.[a-z_]+)?: ")
#: Seconds after which to try again when the daemon is away.
_AWAY_S = 5.0
#: The daemon's [limits] gateways lacks the user that the gateway runs as.
NOT_ADMITTED = "the speech daemon does not take this gateway's requests; the gateway's log says why"

_log = logging.getLogger("glmtts.gateway")
#: What was logged of the daemon, and when: each request would repeat it.
_said: dict[str, float] = {}
_SAID_S, _SAID_MOST = 60.0, 100


class HttpError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "bad_request",
        param: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, object]:
        """The answer's body."""
        kind = (
            "rate_limit_error"
            if self.status == 429
            else "invalid_request_error"
            if self.status < 500
            else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def all_headers(self) -> dict[str, str]:
        """The answer's headers: whether to send the request again, and when."""
        headers = {
            "x-should-retry": "true" if self.retryable else "false",
            "Cache-Control": "no-store",
            # A message may quote what was sent: no browser is to take it for a page.
            "X-Content-Type-Options": "nosniff",
            **self.headers,
        }
        if self.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after_s))
            headers["retry-after-ms"] = str(math.ceil(self.retry_after_s * 1_000))
        return headers

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, self.all_headers)


def behind(error: BaseException | None) -> HttpError | GlmttsError | None:
    """The error of a request behind one of Starlette, which can't answer it once an answer has begun."""
    if isinstance(error, RuntimeError):
        error = error.__cause__
    return error if isinstance(error, HttpError | GlmttsError) else None


def code_of(error: BaseException) -> str:
    """The code alone: a message may quote the text of a request."""
    found = behind(error)
    named = of_daemon(found) if isinstance(found, GlmttsError) else found
    return named.code if named else "internal_error"


def of_daemon(error: GlmttsError) -> HttpError:
    """The answer for an error of the client library."""
    if isinstance(error, RequestFailed):
        if error.code == ErrorCode.FORBIDDEN and error.message.startswith("on_behalf_of"):
            # The operator's mistake, and not the customer's.
            _say(logging.ERROR, f"the daemon refuses this gateway: {error.message}: add it, then 'glmttsctl reload'")
            return HttpError(503, NOT_ADMITTED, code="unavailable", retryable=True, retry_after_s=_AWAY_S)
        found = _FIELD.match(error.message)
        param = _PARAMS.get(found[1], found[1]) if found and error.code in _NAMES_A_KEY else None
        message = f"{param}{error.message[len(found[1]) :]}" if found and param else error.message
        return HttpError(
            _STATUS.get(ErrorCode(error.code), 500) if error.code in set(ErrorCode) else 500,
            message,
            code=error.code,
            param=param,
            retryable=error.retryable,
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, DaemonNotRunning | ConnectionLost):
        _say(logging.WARNING, str(error))
        message = "the speech daemon is away; it may come back in a moment"
        return HttpError(503, message, code="unavailable", retryable=True, retry_after_s=_AWAY_S)
    if isinstance(error, Timeout):
        return HttpError(504, str(error), code="timeout", retryable=True)
    # Wrong keys, a socket that is not trusted: the operator's, with names that are not for customers.
    _say(logging.ERROR, f"the daemon can't be used: {error}")
    message = "the speech daemon can't be used; the gateway's log says why"
    return HttpError(503, message, code="unavailable", retryable=True, retry_after_s=_AWAY_S)


_NAMES_A_KEY = {
    ErrorCode.BAD_REQUEST,
    ErrorCode.VOICE_NOT_FOUND,
    ErrorCode.BAD_AUDIO,
    ErrorCode.TOO_LARGE,
    ErrorCode.FORBIDDEN,
}


def _say(level: int, words: str) -> None:
    """Log for the operator, once a minute."""
    now = time.monotonic()
    if now - _said.get(words, -math.inf) >= _SAID_S:
        if len(_said) >= _SAID_MOST:
            _said.clear()
        _said[words] = now
        _log.log(level, "%s", words)
