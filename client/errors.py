"""The exceptions of the client: one for each error code of the protocol, and those of the connection."""

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
            "where it is a service. GLMTTS_ENDPOINT or GLMTTS_RUNTIME_DIR choose another one."
        )
        self.endpoint = endpoint
        self.reason = reason

    def __reduce__(self) -> tuple[type[DaemonNotRunning], tuple[str, str]]:
        return type(self), (self.endpoint, self.reason)


class UntrustedDaemon(GlmttsError):
    """Another user could be listening where this client looked for the daemon, so it sends nothing there."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(
            f"{endpoint} is not trusted, because {reason}: another user could read and answer your requests. If you "
            "trust that user, name the endpoint yourself (GLMTTS_ENDPOINT, or --endpoint of glmttsctl); if not, have "
            "the folder removed."
        )
        self.endpoint = endpoint
        self.reason = reason

    def __reduce__(self) -> tuple[type[UntrustedDaemon], tuple[str, str]]:
        return type(self), (self.endpoint, self.reason)


class HandshakeFailed(GlmttsError):
    """Something answers at the endpoint, but the keys or the encryption of the two sides do not match."""


class Timeout(GlmttsError):
    """The daemon did not finish in the caller's time; ``job`` is the job's id, if it had one."""

    def __init__(self, message: str, *, job: str | None = None) -> None:
        super().__init__(message)
        self.job = job


class ConnectionLost(GlmttsError):
    """The daemon went away and does not know the request any more; ``job`` is the job's id, if it had one.

    Whether the job was done is unknown. Sent again with the same ``key``, it is never done twice.
    """

    def __init__(self, message: str, *, job: str | None = None) -> None:
        super().__init__(message)
        self.job = job


class ProtocolError(GlmttsError):
    """The answer is not in the protocol: it is damaged, or the other side is no speech daemon."""


class RequestFailed(GlmttsError):
    """The daemon answered with an error.

    Attributes:
        code: the protocol's error code, perhaps a newer one than this package knows.
        message: the daemon's words.
        retryable: whether the same request may succeed later.
        retry_after_s: in how many seconds, None if that is unknown.
        job: the job's id, None if there is none.
    """

    default_code: ClassVar[str] = ""

    def __init_subclass__(cls, code: str) -> None:
        cls.default_code = code

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


class BadRequest(RequestFailed, code="bad_request"):
    """The request breaks the protocol; the message names the field."""


class TooLarge(RequestFailed, code="too_large"):
    """A text, a recording or a message is over a limit of the daemon."""


class Forbidden(RequestFailed, code="forbidden"):
    """This client may not use the class, the job or the socket."""


class VoiceNotFound(RequestFailed, code="voice_not_found"):
    """There is no voice of this name; ``Client.voices`` lists them."""


class JobNotFound(RequestFailed, code="job_not_found"):
    """The daemon knows no such job of this client."""


class BadAudio(RequestFailed, code="bad_audio"):
    """The reference recording can't be decoded, or is too short, too long or silent."""


class OutputExists(RequestFailed, code="output_exists"):
    """There is a file of the name ``output`` already; nothing was overwritten."""


class OutputFailed(RequestFailed, code="output_failed"):
    """The output file can't be written, and no partial file remains."""


class QueueFull(RequestFailed, code="queue_full"):
    """The queue is full; ``retry_after_s`` estimates when it will have room."""


class RateLimited(RequestFailed, code="rate_limited"):
    """Too many requests; the next one is accepted in exactly ``retry_after_s``."""


class DeadlineExceeded(RequestFailed, code="deadline_exceeded"):
    """The job was not finished ``deadline_s`` after its acceptance."""


class Cancelled(RequestFailed, code="cancelled"):
    """The job was cancelled by its client or an operator, or because its client disconnected."""


class SlowConsumer(RequestFailed, code="slow_consumer"):
    """A stream was read too slowly, and its bounded buffer is full."""


class WorkerCrashed(RequestFailed, code="worker_crashed"):
    """The worker process died during the job; the message has the cause."""


class OutOfMemory(RequestFailed, code="out_of_memory"):
    """The job ran out of GPU memory, on a fresh worker too."""


class Hung(RequestFailed, code="hung"):
    """The worker made no progress and was killed."""


class Quarantined(RequestFailed, code="quarantined"):
    """This same job has killed workers before and is not run again."""


class SynthesisFailed(RequestFailed, code="synthesis_failed"):
    """The engine raised an exception; the message is its text."""


class Unavailable(RequestFailed, code="unavailable"):
    """No worker can be started now, or the journal can't take a durable job; the message has the reason."""


class ShuttingDown(RequestFailed, code="shutting_down"):
    """The daemon is draining and accepts no more jobs."""


#: The class of each code. Unknown codes are a plain RequestFailed.
BY_CODE: dict[str, type[RequestFailed]] = {cls.default_code: cls for cls in RequestFailed.__subclasses__()}


def failure_of(event: Error) -> RequestFailed:
    """The exception for an ``error`` event."""
    return BY_CODE.get(event.code, RequestFailed)(
        event.message,
        code=event.code,
        retryable=event.retryable,
        retry_after_s=None if event.retry_after_s is UNSET else event.retry_after_s,
        job=None if event.job is UNSET else event.job,
    )
