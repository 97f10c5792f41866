"""Values in words: amounts, durations and trends as a person reads them, bars and sparklines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from .wrap import clean

_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3

#: A part of a line and the name of its style, which click and rich share.
Piece = tuple[str, str]

#: Where a worker's VRAM is known from, as shown behind the number.
_SOURCES = {"process": "NVML", "device": "device", "torch": "torch"}

#: Keys that hold bytes although their names have no unit.
SIZES = frozenset({"rss", "vram", "torch_allocated", "torch_reserved"})

_BLOCKS = "▁▂▃▄▅▆▇█"


def humanise(key: str, value: Any) -> str:
    """A value as text, by the unit in the name of its key."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{label_of(k)} {humanise(k, v)}" for k, v in value.items() if v is not None) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(humanise("", item) for item in value) or "-"
    if isinstance(value, (int, float)):
        if key == "created":
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        if key.endswith("_s"):
            return duration(value)
        if key in SIZES or key.endswith("bytes"):
            return size(value)
        if key.endswith("_mib"):
            return f"{value:.0f} MiB"
        return str(value) if isinstance(value, int) else f"{value:.3g}"
    return clean(str(value)) or "-"


def label_of(key: str) -> str:
    """A key without its unit, in words."""
    return key.removesuffix("_s").removesuffix("_mib").replace("_", " ")


def duration(seconds: float) -> str:
    """``4.1 ms``, ``240 ms``, ``2.50 s``, ``12.3 s``, ``5 min 07 s``, ``3 h 20 min``, ``2 d 4 h``."""
    if 0 < seconds < 1:
        return f"{seconds * 1_000:.{1 if seconds < 0.1 else 0}f} ms"
    if seconds < 100:
        return f"{seconds:.{2 if seconds < 10 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


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


def size(count: float) -> str:
    """``512 bytes``, ``12.5 KiB``, ``3.1 MiB``, ``1.20 GiB``."""
    if count < _KIB:
        return f"{count:.0f} bytes"
    if count < _MIB:
        return f"{count / _KIB:.1f} KiB"
    return f"{count / _MIB:.1f} MiB" if count < _GIB else f"{count / _GIB:.2f} GiB"


def memory(count: float | None) -> str:
    """``312 MiB``, ``8.6 GiB``, or ``-`` where it is unknown."""
    if count is None:
        return "-"
    return f"{count / _MIB:.0f} MiB" if count < _GIB else f"{count / _GIB:.1f} GiB"


def part_of(part: float | None, total: float | None) -> str:
    """``13.1 of 80.0 GiB``."""
    left, right = memory(part), memory(total)
    number, _, unit = left.partition(" ")
    return f"{number} of {right}" if unit and right.endswith(unit) else f"{left} of {right}"


def vram(count: float | None, trust: str | None) -> str:
    """``8.6 GiB (NVML)``, ``~8.1 GiB (device)``: the amount and its source; ``~`` marks a computed one."""
    if count is None or trust not in _SOURCES:
        return "-"
    return f"{'~' if trust == 'device' else ''}{memory(count)} ({_SOURCES[trust]})"


def growth(mib_per_job: float | None) -> str:
    """``+38 MiB/job``, ``+0.4 MiB/job``, or nothing for memory that does not grow."""
    if mib_per_job is None or abs(mib_per_job) < 0.05:
        return ""
    return f"{mib_per_job:+.{0 if abs(mib_per_job) >= 9.5 else 1}f} MiB/job"


def memory_bar(workers: float, others: float, total: float, width: int) -> list[Piece]:
    """A GPU's memory in ``width`` cells: our workers', other programs' and free; any use at all gets a cell."""
    if total <= 0 or width <= 0:
        return [("?" * max(width, 0), "bright_black")]
    ours, theirs = (max(1, round(amount / total * width)) if amount > 0 else 0 for amount in (workers, others))
    ours = min(ours, width - (1 if theirs else 0))
    theirs = min(theirs, width - ours)
    return [("█" * ours, "cyan"), ("▒" * theirs, "yellow"), ("·" * (width - ours - theirs), "bright_black")]


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as blocks, on a scale of at least a tenth of the least, so that noise looks flat.

    Nothing for a single value, which has no shape.
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
    """A series of any length in at most ``capacity`` numbers: once full, each two neighbours become their maximum."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._values: list[float] = []
        self._step = 1
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        """Add the next sample."""
        self._pending.append(value)
        if len(self._pending) < self._step:
            return
        self._values.append(max(self._pending))
        self._pending.clear()
        if len(self._values) >= self._capacity:
            self._values = [max(pair) for pair in zip(self._values[::2], self._values[1::2], strict=False)]
            self._step *= 2

    @property
    def values(self) -> list[float]:
        """The series, the newest value last."""
        return [*self._values, max(self._pending)] if self._pending else list(self._values)
