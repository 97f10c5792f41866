"""Whose video memory: what each worker holds of a GPU, as far as it can be told, and how far that can be trusted.

NVML's figure for a process is the best there is. Where it has none (containers, WSL), the memory of the device that
nobody else holds is the workers'. Where that can't be known either, there is what the worker says of its own torch,
which leaves out the CUDA context and the libraries (hundreds of MiB).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ..inputs import GpuReading

Trust = Literal["process", "device", "torch", "none"]


class Holder(Struct, frozen=True):
    """A process of a worker on the GPU, from its start until it is reaped.

    ``ready``: its model is loaded. Until then its torch figure, if there is one, is behind by gigabytes.
    """

    incarnation: int
    pid: int
    torch_reserved: int | None = None
    ready: bool = True


class Share(Struct, frozen=True):
    """Bytes of a GPU that a worker holds, None where nobody can say.

    ``process``: NVML said it for this process. ``device``: what is used on the GPU, less what was used before the
    workers came and less what others hold. ``torch``: the worker's own figure, a lower bound.
    """

    vram: int | None
    trust: Trust


_UNKNOWN = Share(None, "none")


def attribute(gpu: GpuReading | None, holders: Sequence[Holder], baseline: int | None = None) -> dict[int, Share]:
    """The share of each holder, by spawn.

    ``baseline`` is what was used on the GPU when none of our processes was there (drivers, other people's programs);
    None if that was never seen. A reading that is not ok is an old one: then only the workers' own figures count.
    """
    shares: dict[int, Share] = {}
    listed = gpu.processes if gpu is not None and gpu.state == "ok" else {}
    used = gpu.used if gpu is not None and gpu.state == "ok" else None
    for holder in holders:
        vram = listed.get(holder.pid)
        if vram is not None:
            # The list and the total are read one after the other; a share never exceeds the whole.
            shares[holder.incarnation] = Share(vram if used is None else min(vram, used), "process")
    rest = [holder for holder in holders if holder.incarnation not in shares]
    if rest:
        theirs = None
        if used is not None and baseline is not None:
            pids = {holder.pid for holder in holders}
            strangers = sum(vram or 0 for pid, vram in listed.items() if pid not in pids)
            told = sum(share.vram or 0 for share in shares.values())
            theirs = max(0, used - max(baseline, strangers, 0) - told)
        shares |= _split(theirs, rest)
    return shares


def _split(theirs: int | None, holders: Sequence[Holder]) -> dict[int, Share]:
    """Split what holders have together, of whom NVML says nothing one by one."""
    own = [holder.torch_reserved if holder.ready else None for holder in holders]
    if theirs is not None:
        if len(holders) == 1:
            # Less than torch itself says it has would be a baseline that has shrunk since, or an old figure of torch.
            if own[0] is None or own[0] <= theirs:
                return {holders[0].incarnation: Share(theirs, "device")}
        else:
            known = [reserved for reserved in own if reserved is not None]
            if len(known) == len(holders) and sum(known) <= theirs:
                # What torch does not count is a context and libraries: the same for each.
                each = (theirs - sum(known)) // len(holders)
                return {
                    holder.incarnation: Share(reserved + each, "device")
                    for holder, reserved in zip(holders, known, strict=True)
                }
    return {
        holder.incarnation: _UNKNOWN if reserved is None else Share(reserved, "torch")
        for holder, reserved in zip(holders, own, strict=True)
    }


def others(gpu: GpuReading, shares: Sequence[Share]) -> int | None:
    """Bytes of the GPU that are in use, but not by these workers; None where that can't be told."""
    if gpu.used is None or gpu.state != "ok":
        return None
    held = 0
    for share in shares:
        if share.vram is None or share.trust == "torch":
            return None
        held += share.vram
    return max(0, gpu.used - held)
