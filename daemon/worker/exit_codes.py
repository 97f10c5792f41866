"""The exit codes of a worker process: what the supervisor, a log and a person read from them.

They follow BSD's sysexits.h where it has a word for it, and stay clear of 1 and 2 (Python's own) and of 128 and above
(a shell's notation for signals).
"""

from __future__ import annotations

#: It was told to stop, and did.
STOPPED = 0
#: GLMTTS_WORKER is missing or makes no sense (EX_USAGE).
USAGE = 64
#: The engine could not be loaded or could not speak its warm-up sentence (EX_UNAVAILABLE).
ENGINE_UNAVAILABLE = 69
#: The engine said that the process can't go on (EX_SOFTWARE).
ENGINE_BROKEN = 70
#: The job at hand, or the engine while it was loaded, ran out of memory (EX_OSERR).
OUT_OF_MEMORY = 71
#: A CUDA error that every further call of the process meets too.
CUDA_CONTEXT = 72
#: The GPU does not answer the process any more.
GPU_LOST = 73
#: The supervisor said something that is not in protocol/worker.py: two versions of the package (EX_PROTOCOL).
PROTOCOL = 76
#: The Python of ``[engine] python`` is too old, or lacks a package that every worker needs (EX_CONFIG).
INTERPRETER = 78
#: The daemon had died before the worker could tie its life to it.
DAEMON_GONE = 79

MEANING: dict[int, str] = {
    STOPPED: "stopped as it was told to",
    USAGE: "was started without a configuration",
    ENGINE_UNAVAILABLE: "the engine could not be loaded",
    ENGINE_BROKEN: "the engine can't go on",
    OUT_OF_MEMORY: "ran out of memory",
    CUDA_CONTEXT: "an error of the GPU has broken its CUDA context",
    GPU_LOST: "the GPU does not answer any more",
    PROTOCOL: "the worker runs another version of this package than the daemon",
    INTERPRETER: "its Python can't run a worker",
    DAEMON_GONE: "the daemon was gone",
}

#: The code that a worker ends with after an error with this code of the workers wire; any other: ENGINE_BROKEN.
OF_FATAL_ERROR: dict[str, int] = {
    "out_of_memory": OUT_OF_MEMORY,
    "cuda_context": CUDA_CONTEXT,
    "gpu_lost": GPU_LOST,
}
