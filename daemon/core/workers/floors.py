"""What the memory policy is told and what it answers: floors, limits, verdicts, trends, and their figures in words."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

MIB = 1024 * 1024

Kind = Literal["", "limit", "leak", "fragmentation", "outside_torch", "host_leak", "host_limit"]

_UNITS = ((MIB, "MiB"), (1024, "KiB"), (1, "bytes"))


class Floor(Struct, frozen=True, kw_only=True):
    """What a process held when it was idle after ``jobs`` jobs, in bytes; None where nobody can say.

    Where it is never idle, the least that was seen since its last job. ``vram`` is what the device has given to this
    process, and must be None where others may be in the figure.
    """

    jobs: int
    at: float
    rss: int | None = None
    vram: int | None = None
    torch_allocated: int | None = None
    torch_reserved: int | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """What a process may hold, in bytes, and in words what says so: ``max_vram_mib``, ``80 % of GPU 0``, ``GPU 0``.

    A hard limit was configured: a floor over it is enough. Any other is what there is: to come near it is no fault,
    only to grow towards it. ``leak_min``: less growth, in bytes, is none. ``horizon_jobs``: replace a process whose
    growth will reach the limit within so many jobs; 0 for never because of growth.
    """

    vram: int | None = None
    vram_words: str = ""
    vram_hard: bool = True
    rss: int | None = None
    rss_words: str = ""
    rss_hard: bool = True
    leak_min: int = 256 * MIB
    horizon_jobs: int = 20


class Verdict(Struct, frozen=True):
    """What to do, because of what, and why in words. ``urgent``: give the process no further job."""

    action: Literal["none", "trim", "recycle"] = "none"
    kind: Kind = ""
    reason: str = ""
    urgent: bool = False


class Trend(Struct, frozen=True):
    """Growth, in bytes per job over ``jobs`` jobs, of the figure that grows most."""

    kind: Kind
    per_job: float
    jobs: int

    @property
    def words(self) -> str:
        """``+38 MiB per job``."""
        return f"+{amount_of(self.per_job)} per job"


# --- words


def share_of(held: int, limit: int, name: str) -> str:
    """``24,100 of 24,576 MiB (GPU 0)``."""
    unit, words = next((unit, words) for unit, words in _UNITS if limit >= 10 * unit or unit == 1)
    says = f" ({name})" if name else ""
    return f"{round(held / unit):,} of {round(limit / unit):,} {words}{says}"


def amount_of(number: float) -> str:
    """``38 MiB``, ``3.2 KiB``, ``12 bytes``."""
    for unit, words in _UNITS:
        if number >= unit:
            return f"{number / unit:,.{1 if unit > 1 and number < 9.95 * unit else 0}f} {words}"
    return f"{number:.2g} bytes"


def count_of(number: float, what: str) -> str:
    rounded = round(number)
    return f"{rounded:,} {what}{'' if rounded == 1 else 's'}"
