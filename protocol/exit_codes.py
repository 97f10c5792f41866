"""The exit codes of a worker process.

They follow BSD's sysexits.h where it has a matching code, and avoid 1 and 2 (Python's own) and 128 and above (a shell's
notation for signals).
"""

from __future__ import annotations

#: It was asked to stop.
STOPPED = 0
#: GLMTTS_WORKER is missing or invalid (EX_USAGE).
USAGE = 64
#: The engine could not be loaded or could not speak its warm-up sentence (EX_UNAVAILABLE).
ENGINE_UNAVAILABLE = 69
#: The engine can't continue in this process (EX_SOFTWARE).
ENGINE_BROKEN = 70
#: A job, or loading the engine, ran out of memory (EX_OSERR).
OUT_OF_MEMORY = 71
#: A CUDA error after which every further call of the process fails.
CUDA_CONTEXT = 72
#: The GPU no longer responds to the process.
GPU_LOST = 73
#: The supervisor sent an unknown message: it runs another version of this package (EX_PROTOCOL).
PROTOCOL = 76
#: The Python of ``[engine] python`` is too old, or lacks a package that workers need (EX_CONFIG).
INTERPRETER = 78
#: The daemon ended while the worker was starting.
DAEMON_GONE = 79

MEANING: dict[int, str] = {
    STOPPED: "stopped on request",
    USAGE: "was started without a configuration",
    ENGINE_UNAVAILABLE: "the engine could not be loaded",
    ENGINE_BROKEN: "the engine can't continue",
    OUT_OF_MEMORY: "ran out of memory",
    CUDA_CONTEXT: "a GPU error broke its CUDA context",
    GPU_LOST: "the GPU no longer responds",
    PROTOCOL: "the worker and the daemon run different versions of this package",
    INTERPRETER: "its Python can't run a worker",
    DAEMON_GONE: "the daemon had ended",
}

#: The exit code after a fatal error, by the error's code on the workers' wire; ENGINE_BROKEN after any other.
OF_FATAL_ERROR: dict[str, int] = {
    "out_of_memory": OUT_OF_MEMORY,
    "cuda_context": CUDA_CONTEXT,
    "gpu_lost": GPU_LOST,
    "engine_unavailable": ENGINE_UNAVAILABLE,
}
