"""The operator's client, on the daemon's control socket."""

from __future__ import annotations

from typing import Any

import msgspec

from glmtts.protocol.endpoints import CONTROL, requests_endpoint, sibling_endpoint
from glmtts.protocol.events import JobInfo, Result

from .blocking import BlockingConnection
from .errors import GlmttsError, ProtocolError
from .exchange import Job, job_id

_DEFAULT_TIMEOUT_S = 10.0

#: The transport of the answer to a drain, beyond its own ``timeout_s``, in seconds.
_DRAIN_MARGIN_S = 5.0


class Control(BlockingConnection):
    """A connection to the control socket of a daemon on this machine.

    Args:
        endpoint: the daemon's requests socket; the control socket is beside it.
        timeout: seconds, the default of every call; None waits as long as it takes.
        reconnect_s: seconds that a lost daemon has to come back.

    Raises:
        GlmttsError: the endpoint is not ``ipc://``; other errors are those of :class:`~.sync.Client`.
    """

    def __init__(
        self, endpoint: str | None = None, timeout: float | None = _DEFAULT_TIMEOUT_S, *, reconnect_s: float = 30.0
    ) -> None:
        try:
            control = sibling_endpoint(endpoint or requests_endpoint(), CONTROL)
        except ValueError as error:
            raise GlmttsError(f"{error}.") from None
        super().__init__(control, timeout, reconnect_s)

    def call(self, op: str, body: bytes | None = None, *, timeout: float | None = None, **keys: Any) -> dict[str, Any]:
        """Call any operation of the control socket with its keys. Returns the keys of its answer."""
        answer = self._ask(op, timeout, object, body=body, **keys)
        if isinstance(answer, Result):
            return answer.values
        values: dict[str, Any] = msgspec.to_builtins(answer)
        return {key: value for key, value in values.items() if key not in ("v", "id", "event")}

    def status(self) -> dict[str, Any]:
        """The daemon's state, problems, workers, queue, counters and memory."""
        return self.call("status")

    def workers(self) -> dict[str, Any]:
        """Every worker: state, process, jobs, and its last death with the cause."""
        return self.call("workers")

    def gpus(self) -> dict[str, Any]:
        """Every GPU with its state and the users of its memory; the state of NVML; the host's memory."""
        return self.call("gpus")

    def jobs(self, state: str | None = None, limit: int | None = None) -> list[JobInfo]:
        """The newest jobs of all clients."""
        try:
            return msgspec.convert(self.call("jobs", state=state, limit=limit).get("jobs"), list[JobInfo])
        except msgspec.ValidationError as error:
            raise ProtocolError(f"The daemon's answer to 'jobs' can't be read: {error}.") from None

    def cancel(self, job: Job | str) -> str:
        """Cancel a job of any client, and return its state."""
        return str(self.call("cancel", job=job_id(job)).get("state", ""))

    def drain(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Accept no more jobs, and return when the accepted ones are done, or after ``timeout_s`` seconds."""
        limit = float("inf") if timeout_s is None else timeout_s + _DRAIN_MARGIN_S
        return self.call("drain", timeout=limit, timeout_s=timeout_s)
