"""A simulated process's view of its world."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from glmtts.daemon.core import inputs

from .accidents import Scene
from .hardware import Hardware
from .journal import Journal

if TYPE_CHECKING:
    from .processes import Process


class Place(Protocol):
    """What a process needs of its world."""

    now: float
    seed: int
    random: random.Random
    scene: Scene
    without: frozenset[str]
    hardware: Hardware
    sick: bool
    attempts: dict[str, int]
    files: dict[str, str]
    marks: set[tuple[str, str]]
    spoken: dict[str, str]
    journal: Journal

    def pid(self) -> int: ...
    def later(self, delay: float, action: Callable[[], object], process: Process | None = None) -> None: ...
    def happen(self, event: inputs.Input) -> None: ...
    def gone(self, process: Process, returncode: int, *, oom_killed: bool) -> None: ...
