"""Amounts as a person reads them at a glance: memory, ages, trends, bars and sparklines."""

from __future__ import annotations

from collections.abc import Sequence

_MIB, _GIB = 1024**2, 1024**3

#: A piece of a line and its style, by the names that both click and rich have.
Piece = tuple[str, str]

#: Where a worker's VRAM is known from, as `workers` and `gpus` show it behind the number.
_SOURCES = {"process": "NVML", "device": "device", "torch": "torch"}

_BLOCKS = "▁▂▃▄▅▆▇█"


def memory(count: float | None) -> str:
    """``312 MiB``, ``8.6 GiB``, or ``-`` for what nobody knows."""
    if count is None:
        return "-"
    return f"{count / _MIB:.0f} MiB" if count < _GIB else f"{count / _GIB:.1f} GiB"


def part_of(part: float | None, total: float | None) -> str:
    """``13.1 of 80.0 GiB``."""
    left, right = memory(part), memory(total)
    number, _, unit = left.partition(" ")
    return f"{number} of {right}" if unit and right.endswith(unit) else f"{left} of {right}"


def vram(count: float | None, trust: str | None) -> str:
    """``8.6 GiB (NVML)``, ``~8.1 GiB (device)``: how much, and how it is known. ``~``: worked out, not read."""
    if count is None or trust not in _SOURCES:
        return "-"
    return f"{'~' if trust == 'device' else ''}{memory(count)} ({_SOURCES[trust]})"


def growth(mib_per_job: float | None) -> str:
    """``+38 MiB/job``, ``+0.4 MiB/job``, or nothing where memory stands still."""
    if mib_per_job is None or abs(mib_per_job) < 0.05:
        return ""
    return f"{mib_per_job:+.0f} MiB/job" if abs(mib_per_job) >= 9.5 else f"{mib_per_job:+.1f} MiB/job"


def age(seconds: float | None) -> str:
    """``45s``, ``12m``, ``3h20m``, ``2d4h``: narrow, for tables."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m"
    if whole < 172_800:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3_600}h"


def memory_bar(workers: float, others: float, total: float, width: int) -> list[Piece]:
    """``width`` cells of a GPU's memory: what our workers have, what others have, what is free.

    What is there at all gets a cell, so that nothing that uses memory is invisible.
    """
    if total <= 0 or width <= 0:
        return [("?" * max(width, 0), "bright_black")]
    cells = []
    for amount in (workers, others):
        cells.append(max(1, round(amount / total * width)) if amount > 0 else 0)
    ours = min(cells[0], width - (1 if cells[1] else 0))
    theirs = min(cells[1], width - ours)
    return [("█" * ours, "cyan"), ("▒" * theirs, "yellow"), ("·" * (width - ours - theirs), "bright_black")]


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as blocks, from the least of them to a tenth more at least: noise stays flat.

    Nothing for a single one, which has no shape.
    """
    shown = list(values[-width:]) if width > 0 else []
    if len(shown) < 2:
        return ""
    low = min(shown)
    high = max(*shown, low * 1.1)
    if high <= low:
        return _BLOCKS[0] * len(shown)
    return "".join(_BLOCKS[int((value - low) / (high - low) * (len(_BLOCKS) - 1) + 0.5)] for value in shown)


class History:
    """A series of any length in a few numbers: when it is full, two neighbours become one, the larger of the two."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._values: list[float] = []
        self._step = 1
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        """The next sample."""
        self._pending.append(value)
        if len(self._pending) < self._step:
            return
        self._values.append(max(self._pending))
        self._pending.clear()
        if len(self._values) >= self._capacity:
            pairs = zip(self._values[::2], self._values[1::2], strict=False)
            self._values = [max(pair) for pair in pairs]
            self._step *= 2

    @property
    def values(self) -> list[float]:
        """What it was, the newest last."""
        return [*self._values, max(self._pending)] if self._pending else list(self._values)
