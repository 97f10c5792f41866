"""The operator's client, on the daemon's control socket."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import msgspec

from glmtts.protocol.endpoints import CONTROL, requests_endpoint, sibling_endpoint
from glmtts.protocol.events import JobInfo, Result

from .errors import GlmttsError, ProtocolError
from .exchange import Job, job_id
from .sync import BlockingConnection

_DEFAULT_TIMEOUT_S = 10.0

#: What a drain may take beyond its own ``timeout_s`` until its answer is here, in seconds.
_DRAIN_MARGIN_S = 5.0


class Control(BlockingConnection):
    """A connection to the control socket beside the requests socket ``endpoint`` (by default this machine's daemon).

    ``timeout`` in seconds is the default of every call; None waits as long as it takes. Raises GlmttsError for an
    endpoint that is not ``ipc://``, and what :class:`~.sync.Client` raises.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        timeout: float | None = _DEFAULT_TIMEOUT_S,
        *,
        reconnect_s: float = 30.0,
    ) -> None:
        try:
            control = sibling_endpoint(endpoint or requests_endpoint(), CONTROL)
        except ValueError as error:
            raise GlmttsError(f"{error}.") from None
        super().__init__(control, timeout, reconnect_s)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, op: str, body: bytes | None = None, *, timeout: float | None = None, **keys: Any) -> dict[str, Any]:
        """Any operation of the control socket, with its keys; returns the keys of its answer."""
        answer = self._ask(op, timeout, body=body, **keys)
        if isinstance(answer, Result):
            return answer.values
        values: dict[str, Any] = msgspec.to_builtins(answer)
        return {key: value for key, value in values.items() if key not in ("v", "id", "event")}

    def status(self) -> dict[str, Any]:
        """The daemon in one map: state, workers, queue, counters, memory."""
        return self.call("status")

    def workers(self) -> dict[str, Any]:
        """Every worker: state, process, jobs, last death and its cause."""
        return self.call("workers")

    def gpus(self) -> dict[str, Any]:
        """Every GPU: its state, and who uses its memory; how NVML does; the host's memory."""
        return self.call("gpus")

    def jobs(self, state: str | None = None, limit: int | None = None) -> list[JobInfo]:
        """Everyone's jobs, the newest first."""
        try:
            return msgspec.convert(self.call("jobs", state=state, limit=limit).get("jobs"), list[JobInfo])
        except msgspec.ValidationError as error:
            raise ProtocolError(f"The daemon's answer to 'jobs' can't be read: {error}.") from None

    def cancel(self, job: Job | str) -> str:
        """End anyone's job; returns its state."""
        return str(self.call("cancel", job=job_id(job)).get("state", ""))

    def drain(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Accept no more jobs and finish those accepted; returns when that is done, or after ``timeout_s`` seconds."""
        patience = float("inf") if timeout_s is None else timeout_s + _DRAIN_MARGIN_S
        return self.call("drain", timeout=patience, timeout_s=timeout_s)
