"""How a worker is started: its command line, and the environment that carries its configuration."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from typing import Any

import msgspec

from glmtts.protocol import exit_codes

from .. import config
from ..core.settings import Settings
from . import guardian

#: Modules that every worker imports, and their packages.
PACKAGES = {
    "zmq": "pyzmq",
    "msgpack": "msgpack",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "soundfile": "soundfile",
    "soxr": "soxr",
}

#: Modules that the daemon imports for GPUs and metrics, and their packages.
_DAEMON_PACKAGES = {"pynvml": "nvidia-ml-py", "prometheus_client": "prometheus-client"}

#: The oldest Python that a worker runs on.
OLDEST_PYTHON = (3, 11)

#: Runs the worker in an interpreter without this package: it sees ``glmtts`` and no other module of the daemon's
#: environment. The last line of its output names what is wrong with the interpreter and becomes the cause of the
#: worker's end. Python 2.6 can parse it, so that an old interpreter reports its version.
_BOOTSTRAP = """
import sys
def end(words):
    sys.stderr.write("worker ends with code %d: %s is Python %d.%d.%d, %s\\n"
                     % ((CODE, sys.executable) + tuple(sys.version_info[:3]) + (words,)))
    sys.exit(CODE)
if sys.version_info < OLDEST:
    end("and a worker needs %d.%d or later; set [engine] python to another" % OLDEST)
import importlib.util, runpy, traceback, types
lacking = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
if lacking:
    end("and lacks what a worker needs: %s -m pip install %s" % (sys.executable, " ".join(lacking)))
glmtts = types.ModuleType("glmtts")
glmtts.__path__ = sys.argv[1].split(":")
sys.modules["glmtts"] = glmtts
del sys.argv[1]
try:
    runpy.run_module("glmtts.daemon.gpu_worker", run_name="__main__", alter_sys=True)
except ImportError as error:
    traceback.print_exc()
    end("and can't import what a worker needs (%s); install it anew: %s -m pip install --force-reinstall %s"
        % (error, sys.executable, " ".join(PACKAGES.values())))
"""

#: The service manager's channels are the daemon's alone.
_PRIVATE = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


def command(interpreter: str) -> list[str]:
    """The command line of a worker with this interpreter."""
    if interpreter == sys.executable:
        return [interpreter, "-m", "glmtts.daemon.gpu_worker"]
    import glmtts

    facts = {"CODE": exit_codes.INTERPRETER, "OLDEST": OLDEST_PYTHON, "PACKAGES": PACKAGES}
    known = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
    return [interpreter, "-c", known + _BOOTSTRAP, ":".join(glmtts.__path__)]


def missing_packages(settings: Settings) -> list[str]:
    """The packages that the daemon needs with these settings and that its interpreter lacks.

    An installation for clients has the daemon's code without its packages, which the extra ``daemon`` brings.
    """
    needed = dict(_DAEMON_PACKAGES)
    if config.engine_python(settings) == sys.executable:
        needed |= PACKAGES
        if settings.engine.name == "espeak":
            needed["espeakng_loader"] = "espeakng-loader"
    return [package for module, package in needed.items() if find_spec(module) is None]


def environment(settings: Settings, worker: dict[str, Any], boot: str, device: str | None) -> dict[str, str]:
    """The environment of a worker: the daemon's own, and the worker's configuration.

    Args:
        settings: The daemon's settings.
        worker: The keys of WorkerConfig that differ from worker to worker.
        boot: The boot token (guardian.py).
        device: The value of CUDA_VISIBLE_DEVICES; None leaves it unchanged.
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
        "confine": engine.confine,
        "outputs_dir": str(config.outputs_dir(settings)),
        "results_dir": str(config.results_dir(settings)),
    } | worker
    environment = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    environment["GLMTTS_WORKER"] = json.dumps(worker)
    environment[guardian.VARIABLE] = boot
    environment["PYTHONUNBUFFERED"] = "1"
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - pathlib raises
        # Libraries keep caches there. Without a home folder they would make one called "~".
        environment["HOME"] = str(config.cache_dir(settings))
    if config.engine_python(settings) != sys.executable:
        # It tells the daemon's Python where its library is, and any other would not start with it.
        environment.pop("PYTHONHOME", None)
    if device is not None:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = device
    return environment
