"""How a worker is started: its command line, and the environment that its configuration travels in."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import msgspec

from . import config, guardian
from .core.settings import Settings

#: Runs the worker in an interpreter that this package is not installed in: it sees ``glmtts`` and nothing else of ours.
_BOOTSTRAP = """
import runpy, sys, types
glmtts = types.ModuleType("glmtts")
glmtts.__path__ = sys.argv[1].split(":")
sys.modules["glmtts"] = glmtts
del sys.argv[1]
runpy.run_module("glmtts.daemon.gpu_worker", run_name="__main__", alter_sys=True)
"""

#: The service manager's channels are the daemon's alone.
_PRIVATE = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


def command(interpreter: str) -> list[str]:
    """What runs a worker with this interpreter."""
    if interpreter == sys.executable:
        return [interpreter, "-m", "glmtts.daemon.gpu_worker"]
    import glmtts

    return [interpreter, "-c", _BOOTSTRAP, ":".join(glmtts.__path__)]


def environment(settings: Settings, worker: dict[str, Any], boot: str, device: str | None) -> dict[str, str]:
    """The daemon's own environment, with what makes the process a worker.

    ``worker`` has the keys of WorkerConfig that are this process's own; ``boot`` is its token (guardian.py), ``device``
    what CUDA_VISIBLE_DEVICES is set to, None to leave it as it is.
    """
    engine = settings.engine
    worker = {
        "daemon_pid": os.getpid(),
        "engine": engine.name,
        "engine_settings": msgspec.to_builtins(getattr(engine, engine.name, None)) or {},
        "warmup_text": engine.warmup_text,
        "recording_min_s": settings.limits.recording_min_s,
        "recording_max_s": settings.limits.recording_max_s,
        "default_sample_rate": settings.audio.sample_rate,
        "needs_gpu": settings.workers.gpus != "none",
        "cache_dir": str(config.cache_dir(settings)),
    } | worker
    environment = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    environment["GLMTTS_WORKER"] = json.dumps(worker)
    environment[guardian.VARIABLE] = boot
    environment["PYTHONUNBUFFERED"] = "1"
    if device is not None:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = device
    return environment
