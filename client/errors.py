"""Everything that a client raises: one class for each error code of the protocol, and what goes wrong on the way."""

from __future__ import annotations

from typing import ClassVar

from msgspec import UNSET

from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.events import Error


class GlmttsError(Exception):
    """The base of every error of this package; ``str()`` says what happened and what to do."""


class DaemonNotRunning(GlmttsError):
    """Nothing answers at the endpoint."""

    def __init__(self, endpoint: str, reason: str = "nothing is listening there") -> None:
        super().__init__(
            f"No speech daemon answers at {endpoint}: {reason}. Start it with `glmttsd`, or `systemctl start glmtts` "
            "where it is installed as a service; GLMTTS_ENDPOINT or GLMTTS_RUNTIME_DIR say where another one is."
        )
        self.endpoint = endpoint
        self.reason = reason

    def __reduce__(self) -> tuple[type[DaemonNotRunning], tuple[str, str]]:
        return type(self), (self.endpoint, self.reason)


class HandshakeFailed(GlmttsError):
    """Something answers at the endpoint, but the keys or the encryption of the two sides do not fit."""


class Timeout(GlmttsError):
    """The daemon did not finish in the time that the caller gave; ``job`` is the job's id, if it had one."""

    def __init__(self, message: str, *, job: str | None = None) -> None:
        super().__init__(message)
        self.job = job


class ConnectionLost(GlmttsError):
    """The daemon went away and no longer knows what it was asked; ``job`` is the job's id, if it had one.

    Whether the job was done is unknown. Sent again with the same ``key``, it is never done twice.
    """

    def __init__(self, message: str, *, job: str | None = None) -> None:
        super().__init__(message)
        self.job = job


class ProtocolError(GlmttsError):
    """The daemon's answer is not the protocol's: it is damaged, or the other side is no speech daemon."""


class RequestFailed(GlmttsError):
    """The daemon answered with an ``error`` event, whose ``message`` is its own words.

    ``code`` is a code of the protocol, perhaps a newer one than this package knows; ``retryable`` says whether the same
    request may succeed later, and ``retry_after_s`` in how many seconds, if that is known. ``job`` is the job's id, if
    there is one.
    """

    default_code: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        job: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = self.default_code if code is None else code
        self.message = message
        known = self.code in ErrorCode.__members__.values() and ErrorCode(self.code).retryable
        self.retryable = known if retryable is None else retryable
        self.retry_after_s = retry_after_s
        self.job = job


class BadRequest(RequestFailed):
    """The request is not what the protocol says; the message names the field."""

    default_code = "bad_request"


class TooLarge(RequestFailed):
    """A text, a recording or a message over a limit of the daemon."""

    default_code = "too_large"


class Forbidden(RequestFailed):
    """Not this client's class, job or socket."""

    default_code = "forbidden"


class VoiceNotFound(RequestFailed):
    """No voice of this name; ``Client.voices`` lists those that there are."""

    default_code = "voice_not_found"


class JobNotFound(RequestFailed):
    """The daemon knows no such job of this client."""

    default_code = "job_not_found"


class BadAudio(RequestFailed):
    """The reference recording can't be decoded, or is too short, too long or silent."""

    default_code = "bad_audio"


class OutputExists(RequestFailed):
    """There is a file called ``output`` already; nothing was overwritten."""

    default_code = "output_exists"


class OutputFailed(RequestFailed):
    """The output file can't be written; nothing half-written stays."""

    default_code = "output_failed"


class QueueFull(RequestFailed):
    """The queue is full; ``retry_after_s`` estimates when it will not be."""

    default_code = "queue_full"


class RateLimited(RequestFailed):
    """Too many requests; ``retry_after_s`` says exactly when the next one is accepted."""

    default_code = "rate_limited"


class DeadlineExceeded(RequestFailed):
    """The job was not finished ``deadline_s`` after its acceptance."""

    default_code = "deadline_exceeded"


class Cancelled(RequestFailed):
    """The job was cancelled by its client, by an operator, or because its client went away."""

    default_code = "cancelled"


class SlowConsumer(RequestFailed):
    """A stream was not read fast enough, and the bounded buffer for it is full."""

    default_code = "slow_consumer"


class WorkerCrashed(RequestFailed):
    """The process that worked on the job died; the message says of what."""

    default_code = "worker_crashed"


class OutOfMemory(RequestFailed):
    """The job ran out of GPU memory on a fresh worker too."""

    default_code = "out_of_memory"


class Hung(RequestFailed):
    """The worker made no progress and was killed."""

    default_code = "hung"


class Quarantined(RequestFailed):
    """This very job has killed workers before and is not tried again."""

    default_code = "quarantined"


class SynthesisFailed(RequestFailed):
    """The engine raised; the message is its own words."""

    default_code = "synthesis_failed"


class Unavailable(RequestFailed):
    """No worker can be started now, or for a durable job the journal can't be used; the message says why."""

    default_code = "unavailable"


class ShuttingDown(RequestFailed):
    """The daemon is draining and takes no more jobs."""

    default_code = "shutting_down"


#: The class of each code. A code that is not here is a RequestFailed itself.
BY_CODE: dict[str, type[RequestFailed]] = {cls.default_code: cls for cls in RequestFailed.__subclasses__()}


def failure_of(event: Error) -> RequestFailed:
    """The exception that says what an ``error`` event says."""
    return BY_CODE.get(event.code, RequestFailed)(
        event.message,
        code=event.code,
        retryable=event.retryable,
        retry_after_s=None if event.retry_after_s is UNSET else event.retry_after_s,
        job=None if event.job is UNSET else event.job,
    )
