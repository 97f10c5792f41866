"""Why worker processes end, and what follows from each cause: for the worker, for its job, and for the client."""

from __future__ import annotations

import enum

from msgspec import Struct

from glmtts.protocol import exit_codes
from glmtts.protocol.errors import ErrorCode


class Cause(enum.StrEnum):
    """Why a process ended."""

    #: The daemon, or a SIGTERM from outside, ended it.
    REQUESTED = "requested"
    #: An operator asked for a new process, or for fewer workers.
    OPERATOR = "operator"
    #: It reached a limit: of jobs, of age, or of memory.
    RECYCLED = "recycled"
    #: Its memory grew with every job and would have run out.
    LEAK = "leak"
    #: No job came for long.
    UNLOADED = "unloaded"
    #: It ended by itself or by a signal; the detail names it.
    CRASHED = "crashed"
    #: The kernel killed it because the machine or its control group had no memory left.
    HOST_OOM = "host_oom"
    #: A job did not fit the GPU's memory. Further work in such a process is unreliable in practice.
    OUT_OF_MEMORY = "out_of_memory"
    #: An error of the GPU that leaves the CUDA context unusable for good (700, 710, 716 to 719).
    CUDA_CONTEXT = "cuda_context"
    #: The GPU stopped answering; another one may work.
    GPU_LOST = "gpu_lost"
    HUNG = "hung"
    PROTOCOL = "protocol"
    START_TIMEOUT = "start_timeout"
    START_FAILED = "start_failed"


class Policy(Struct, frozen=True, kw_only=True):
    """The consequences of a cause.

    ``fault``: the next start waits, and the circuit breaker counts it. ``blames_job``: the running job may have killed
    the process. ``code``: the error of a job that is not retried.
    """

    fault: bool
    blames_job: bool = False
    code: ErrorCode = ErrorCode.WORKER_CRASHED


POLICIES: dict[Cause, Policy] = {
    Cause.REQUESTED: Policy(fault=False),
    Cause.OPERATOR: Policy(fault=False),
    Cause.RECYCLED: Policy(fault=False),
    Cause.LEAK: Policy(fault=False),
    Cause.UNLOADED: Policy(fault=False),
    Cause.CRASHED: Policy(fault=True, blames_job=True),
    # The kernel chooses its victim by size: the running job is seldom the one that filled the machine.
    Cause.HOST_OOM: Policy(fault=True),
    Cause.OUT_OF_MEMORY: Policy(fault=True, code=ErrorCode.OUT_OF_MEMORY),
    Cause.CUDA_CONTEXT: Policy(fault=True, blames_job=True),
    Cause.GPU_LOST: Policy(fault=True),
    Cause.HUNG: Policy(fault=True, blames_job=True, code=ErrorCode.HUNG),
    Cause.PROTOCOL: Policy(fault=True, blames_job=True),
    Cause.START_TIMEOUT: Policy(fault=True),
    Cause.START_FAILED: Policy(fault=True),
}

#: The cause when a process announces its end with such a code. ``cancelled``: it received a SIGTERM.
CAUSE_OF_CODE: dict[str, Cause] = {
    "out_of_memory": Cause.OUT_OF_MEMORY,
    "cuda_context": Cause.CUDA_CONTEXT,
    "gpu_lost": Cause.GPU_LOST,
    # A part of the engine that ended can't be started again.
    "engine_unavailable": Cause.START_FAILED,
    "cancelled": Cause.REQUESTED,
}

#: The same for a process that ends unannounced, by its exit status.
CAUSE_OF_STATUS: dict[int, Cause] = {
    exit_codes.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    exit_codes.CUDA_CONTEXT: Cause.CUDA_CONTEXT,
    exit_codes.GPU_LOST: Cause.GPU_LOST,
}
