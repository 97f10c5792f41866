"""The error codes of the protocol, whether a retry can help, and the exception for a refused request."""

from __future__ import annotations

import enum


class ErrorCode(enum.StrEnum):
    """Codes of the ``error`` event."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    FORBIDDEN = "forbidden"
    VOICE_NOT_FOUND = "voice_not_found"
    JOB_NOT_FOUND = "job_not_found"
    BAD_AUDIO = "bad_audio"
    OUTPUT_EXISTS = "output_exists"
    OUTPUT_FAILED = "output_failed"
    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limited"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    SLOW_CONSUMER = "slow_consumer"
    WORKER_CRASHED = "worker_crashed"
    OUT_OF_MEMORY = "out_of_memory"
    HUNG = "hung"
    QUARANTINED = "quarantined"
    SYNTHESIS_FAILED = "synthesis_failed"
    UNAVAILABLE = "unavailable"
    SHUTTING_DOWN = "shutting_down"

    @property
    def retryable(self) -> bool:
        """Whether the same request, sent again later, may succeed."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.QUEUE_FULL,
        ErrorCode.RATE_LIMITED,
        ErrorCode.WORKER_CRASHED,
        ErrorCode.HUNG,
        ErrorCode.UNAVAILABLE,
        ErrorCode.SHUTTING_DOWN,
    }
)


class RequestError(Exception):
    """A refused request, with the contents of its ``error`` event. ``id``: ``""`` if it can't be read."""

    def __init__(self, code: ErrorCode, message: str, *, id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id
        self.retry_after_s = retry_after_s
