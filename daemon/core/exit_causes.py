"""What processes die of, and what follows from each cause: for the worker, for its job, and for who asked for it."""

from __future__ import annotations

import enum

from msgspec import Struct

from glmtts.protocol import exit_codes
from glmtts.protocol.errors import ErrorCode


class Cause(enum.StrEnum):
    """What a process died of."""

    #: It ended because the daemon, or a SIGTERM from outside, told it to.
    REQUESTED = "requested"
    #: An operator asked for a new process, or for fewer workers.
    OPERATOR = "operator"
    #: It had done its number of jobs, was old enough, or over a limit of its memory.
    RECYCLED = "recycled"
    #: Its memory grew with every job, and would have run out.
    LEAK = "leak"
    #: Nobody needed it for long.
    UNLOADED = "unloaded"
    #: It ended by itself or by a signal; the detail names it.
    CRASHED = "crashed"
    #: The kernel killed it, since the machine or its control group had no memory left.
    HOST_OOM = "host_oom"
    #: A job did not fit the GPU's memory. Going on in such a process is unreliable in practice.
    OUT_OF_MEMORY = "out_of_memory"
    #: An error of the GPU that leaves the CUDA context unusable for good (700, 710, 716 to 719).
    CUDA_CONTEXT = "cuda_context"
    #: The GPU did not answer it any more: another one may.
    GPU_LOST = "gpu_lost"
    HUNG = "hung"
    PROTOCOL = "protocol"
    START_TIMEOUT = "start_timeout"
    START_FAILED = "start_failed"


class Policy(Struct, frozen=True, kw_only=True):
    """What a cause means.

    ``fault``: it makes the next start wait, and counts for the breaker. ``blames_job``: what the worker was speaking
    may be what killed it. ``code``: what the client is told when its job is not tried again.
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
    # The kernel chooses its victim by size: what this one was speaking is seldom what filled the machine.
    Cause.HOST_OOM: Policy(fault=True),
    Cause.OUT_OF_MEMORY: Policy(fault=True, code=ErrorCode.OUT_OF_MEMORY),
    Cause.CUDA_CONTEXT: Policy(fault=True, blames_job=True),
    Cause.GPU_LOST: Policy(fault=True),
    Cause.HUNG: Policy(fault=True, blames_job=True, code=ErrorCode.HUNG),
    Cause.PROTOCOL: Policy(fault=True, blames_job=True),
    Cause.START_TIMEOUT: Policy(fault=True),
    Cause.START_FAILED: Policy(fault=True),
}

#: What a process dies of that announces its end with such a code. ``cancelled``: somebody sent it a SIGTERM.
CAUSE_OF_CODE: dict[str, Cause] = {
    "out_of_memory": Cause.OUT_OF_MEMORY,
    "cuda_context": Cause.CUDA_CONTEXT,
    "gpu_lost": Cause.GPU_LOST,
    "cancelled": Cause.REQUESTED,
}

#: The same for one that had no time to announce it: by its exit status.
CAUSE_OF_STATUS: dict[int, Cause] = {
    exit_codes.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    exit_codes.CUDA_CONTEXT: Cause.CUDA_CONTEXT,
    exit_codes.GPU_LOST: Cause.GPU_LOST,
}
