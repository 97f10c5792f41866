"""How much of a GPU's memory each worker holds, and how far that figure can be trusted.

NVML's figure for a process is the best. Where it has none (containers, WSL), the rest of the device's used memory
belongs to the workers. Where that is unknown too, the worker reports its own torch memory, which leaves out the CUDA
context and the libraries (hundreds of MiB).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ..inputs import GpuReading

Trust = Literal["process", "device", "torch", "none"]


class Holder(Struct, frozen=True):
    """A worker process on the GPU, from its start until it is reaped.

    ``ready``: its model is loaded. Until then its torch figure is behind by gigabytes. ``descendants``: processes that
    it has started, whose memory is its own.
    """

    incarnation: int
    pid: int
    torch_reserved: int | None = None
    ready: bool = True
    descendants: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid, *self.descendants)


class Share(Struct, frozen=True):
    """Bytes of a GPU that a worker holds, None where unknown.

    ``process``: NVML's figure for this process. ``device``: the GPU's used memory, less what was used before the
    workers started and what others hold. ``torch``: the worker's own figure, a lower bound.
    """

    vram: int | None
    trust: Trust


UNKNOWN = Share(None, "none")


def attribute(gpu: GpuReading, holders: Sequence[Holder], baseline: int | None = None) -> dict[int, Share]:
    """The share of each holder in a reading that is ok, by the holder's incarnation.

    ``baseline``: bytes that were used on the GPU without any worker process (drivers, other programs); None if that was
    never seen.
    """
    shares: dict[int, Share] = {}
    listed, used = gpu.processes, gpu.used
    for holder in holders:
        figures = [listed[pid] for pid in holder.pids if pid in listed]
        if figures and None not in figures:
            vram = sum(figure or 0 for figure in figures)
            # The list and the total are read one after the other; a share never exceeds the whole.
            shares[holder.incarnation] = Share(vram if used is None else min(vram, used), "process")
    rest = [holder for holder in holders if holder.incarnation not in shares]
    if rest:
        theirs = None
        if used is not None and baseline is not None:
            pids = {pid for holder in holders for pid in holder.pids}
            strangers = sum(vram or 0 for pid, vram in listed.items() if pid not in pids)
            told = sum(share.vram or 0 for share in shares.values())
            theirs = max(0, used - max(baseline, strangers, 0) - told)
        shares |= _split(theirs, rest)
    return shares


def _split(theirs: int | None, holders: Sequence[Holder]) -> dict[int, Share]:
    """Split memory that holders have together, where NVML has no figures for each."""
    own = [holder.torch_reserved if holder.ready else None for holder in holders]
    if theirs is not None:
        if len(holders) == 1:
            # Less than torch itself says it has would be a baseline that has shrunk since, or an old figure of torch.
            if own[0] is None or own[0] <= theirs:
                return {holders[0].incarnation: Share(theirs, "device")}
        else:
            known = [reserved for reserved in own if reserved is not None]
            if len(known) == len(holders) and sum(known) <= theirs:
                # Torch leaves out a context and libraries: the same for each.
                each = (theirs - sum(known)) // len(holders)
                return {
                    holder.incarnation: Share(reserved + each, "device")
                    for holder, reserved in zip(holders, known, strict=True)
                }
    return {
        holder.incarnation: UNKNOWN if reserved is None else Share(reserved, "torch")
        for holder, reserved in zip(holders, own, strict=True)
    }


def others(gpu: GpuReading, shares: Sequence[Share]) -> int | None:
    """Bytes of the GPU that are used by other programs than these workers; None where unknown."""
    if gpu.used is None or gpu.state != "ok":
        return None
    held = 0
    for share in shares:
        if share.vram is None or share.trust == "torch":
            return None
        held += share.vram
    return max(0, gpu.used - held)
