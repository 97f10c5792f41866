"""The workers' interpreter, the engine's own checks, and room for the workers on the GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .. import config, engines
from ..core.inputs import GpuReading
from ..core.settings import Settings
from ..engines.checks import GpuNeed, Workplace, ask
from ..gpu.nvml import NvmlReader
from ..processes.command import OLDEST_PYTHON, PACKAGES
from .check import Check, memory, needs_gpu, ok, warning, wrong
from .gpu import is_worker

#: Imports from a slow disk take seconds.
_TIMEOUT_S = 14.0

#: Prints the version of each module in its arguments, or the error of its import.
_IMPORTS = """
import importlib, json, platform, sys
found, failed = {}, {}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        found[name] = str(getattr(module, "__version__", "") or getattr(module, "version", ""))
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"python": platform.python_version(), "found": found, "failed": failed}))
"""


def interpreter(settings: Settings) -> list[Check]:
    """Whether the workers' Python exists and imports the packages that every worker needs."""
    path = config.engine_python(settings)
    key = "[engine] python"

    def bad(seen: str, remedy: str, means: str = "no worker can start") -> list[Check]:
        return [wrong("engine's python", f"{path}: {seen}", means, remedy)]

    answer = ask(path, _IMPORTS, *PACKAGES, timeout_s=_TIMEOUT_S)
    if isinstance(answer, str):
        return bad(answer, f"set {key} to an interpreter that exists and that this user may run")
    version = str(answer["python"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PYTHON:
        return bad(f"Python {version}", f"set {key} to a Python 3.11 or later", "too old for a worker")
    failed: dict[str, str] = answer["failed"]
    if failed:
        reasons = "; ".join(f"import {name}: {why[:200]}" for name, why in failed.items())
        return bad(reasons, f"{path} -m pip install {' '.join(PACKAGES[name] for name in failed)}")
    versions = ", ".join(f"{name} {version}".rstrip() for name, version in answer["found"].items())
    return [ok("engine's python", f"{path}: Python {version}, {versions}")]


def files(settings: Settings) -> list[Check]:
    """The engine's files."""
    return engines.checks_of(settings.engine.name).files(_workplace(settings))


def installed(settings: Settings) -> list[Check]:
    """What the engine needs in the workers' Python, as far as that can be seen without importing all of it."""
    return engines.checks_of(settings.engine.name).installed(_workplace(settings))


def packages(settings: Settings) -> list[Check]:
    """The engine's packages, imported in the workers' Python."""
    return engines.checks_of(settings.engine.name).packages(_workplace(settings))


def room(settings: Settings) -> list[Check]:
    """Whether the configured number of workers fits each GPU. Blocks as long as the driver does."""
    need = engines.checks_of(settings.engine.name).gpu_need(_workplace(settings)) if needs_gpu(settings) else None
    if need is None:
        return []
    reading, gpus = NvmlReader().read()
    return judge_room(settings, need, gpus) if reading.state == "ok" else []


def judge_room(settings: Settings, need: GpuNeed, gpus: Sequence[GpuReading]) -> list[Check]:
    """Whether the workers fit: ``need`` or ``[workers] vram_mib`` each, against the free memory of each GPU."""
    workers = settings.workers
    each = workers.vram_mib << 20 or need.bytes
    source = "[workers] vram_mib" if workers.vram_mib else f"computed: {need.computed}"
    count = min(workers.per_gpu, workers.max or workers.per_gpu)
    smaller = f", {need.remedy}" if need.remedy else ""
    checks = []
    for gpu in gpus:
        if gpu.state != "ok" or gpu.total is None or (workers.gpus != "all" and gpu.index not in workers.gpus):
            continue
        ours = sum(size or 0 for pid, size in gpu.processes.items() if is_worker(pid))
        free = min(gpu.total, (gpu.free or 0) + ours)
        seen = f"{count} of {memory(each)} ({source}), {memory(free)} of {memory(gpu.total)} free or ours"
        name = f"GPU {gpu.index} room"
        if each * count > gpu.total:
            means = f"{count} {'worker does' if count == 1 else 'workers do'} not fit this GPU"
            remedy = f"fewer in [workers] per_gpu{smaller}, or another GPU in [workers] gpus"
            checks.append(wrong(name, seen, means, remedy))
        elif each * count > free:
            means = "other processes hold the memory that the workers need: they wait until it is free"
            remedy = f"end the other processes on this GPU, or fewer in [workers] per_gpu{smaller}"
            checks.append(warning(name, seen, means, remedy))
        else:
            checks.append(ok(name, seen))
    return checks


def _workplace(settings: Settings) -> Workplace:
    section = msgspec.to_builtins(getattr(settings.engine, settings.engine.name, None)) or {}
    return Workplace(config.engine_python(settings), section, settings.workers.gpus != "none")
