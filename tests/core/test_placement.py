"""How many workers there are at most, and on which GPU each one goes."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from glmtts.daemon.core.settings import EngineSettings, Settings, WorkersSettings
from glmtts.daemon.core.workers.placement import asks_nvml, gpus_of, most, next_gpu


def settings(engine: Literal["fault", "espeak"] = "fault", **workers: Any) -> Settings:
    return Settings(engine=EngineSettings(name=engine), workers=WorkersSettings(**workers))


@pytest.mark.parametrize(
    ("workers", "found", "expected"),
    [
        ({"gpus": "none"}, [], 1),
        ({"gpus": "none", "per_gpu": 3}, [0], 3),
        ({"gpus": "none", "min": 2}, [], 2),
        ({"gpus": "none", "max": 4}, [], 4),
        ({"gpus": "all"}, [], 1),
        ({"gpus": "all"}, [0, 1, 2], 3),
        ({"gpus": "all", "per_gpu": 2}, [0, 1], 4),
        ({"gpus": "all", "per_gpu": 2, "max": 3}, [0, 1], 3),
        ({"gpus": [1], "max": 9}, [0, 1], 1),
    ],
)
def test_there_are_as_many_places_as_gpus_and_bounds_give(
    workers: dict[str, Any], found: list[int], expected: int
) -> None:
    configured = settings(**workers)
    assert most(configured, gpus_of(configured, found)) == expected


def test_an_engine_that_uses_no_gpu_does_not_ask_for_one() -> None:
    assert not asks_nvml(settings("espeak"))
    assert gpus_of(settings("espeak"), [0, 1]) == []
    assert not asks_nvml(settings(gpus="none"))
    assert asks_nvml(settings(gpus=[0]))


def test_gpus_are_filled_evenly() -> None:
    taken: list[int | None] = []
    while (gpu := next_gpu([0, 1, 2], taken, 2)) is not None:
        taken.append(gpu)
    assert taken == [0, 1, 2, 0, 1, 2]
    assert next_gpu([0, 1], [0, 0], 2) == 1
    assert next_gpu([], [None], 1) is None
