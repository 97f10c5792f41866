"""How many workers there are, and on which GPU each one is."""

from __future__ import annotations

from .settings import WorkersSettings


def places(workers: WorkersSettings) -> list[int | None]:
    """A GPU's index for each worker, GPUs filled evenly; None for a worker without one.

    Without GPUs the machine counts as one, and ``max`` alone decides if it is set. No engine of this version looks for
    GPUs by itself, so ``"all"`` is none.
    """
    if isinstance(workers.gpus, str):
        return [None] * (workers.max or max(workers.per_gpu, workers.min))
    on_gpus: list[int | None] = [gpu for _ in range(workers.per_gpu) for gpu in workers.gpus]
    return on_gpus[: workers.max] if workers.max else on_gpus
