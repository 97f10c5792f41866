"""On which GPUs workers may be, how many at most, and on which the next one goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..settings import Settings

#: Engines that may use a GPU.
GPU_ENGINES = frozenset({"glmtts", "fault", "server"})


def asks_nvml(settings: Settings) -> bool:
    """Whether the GPUs for workers are known only from NVML."""
    return settings.workers.gpus != "none" and settings.engine.name in GPU_ENGINES


def gpus_of(settings: Settings, found: Sequence[int]) -> list[int]:
    """The GPUs to use: those of the configuration, or for ``"all"`` those that were found."""
    if not asks_nvml(settings):
        return []
    gpus = settings.workers.gpus
    return list(found) if isinstance(gpus, str) else list(gpus)


def most(settings: Settings, gpus: Sequence[int]) -> int:
    """The most workers that may run. Without GPUs the machine counts as one GPU, unless ``max`` is set."""
    workers = settings.workers
    if not gpus:
        return workers.max or max(workers.per_gpu, workers.min)
    places = workers.per_gpu * len(gpus)
    return min(workers.max, places) if workers.max else places


def next_gpu(gpus: Sequence[int], taken: Iterable[int | None], per_gpu: int) -> int | None:
    """The GPU with the fewest workers, the first of several; None if there is none, or all have ``per_gpu``."""
    count = dict.fromkeys(gpus, 0)
    for gpu in taken:
        if gpu in count:
            count[gpu] += 1
    free = [gpu for gpu in gpus if count[gpu] < per_gpu]
    return min(free, key=count.__getitem__, default=None)
