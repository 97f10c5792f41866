"""As many workers as were configured, and each on the GPU that was."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core.places import places
from glmtts.daemon.core.settings import WorkersSettings


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [None]),
        ({"gpus": "none", "per_gpu": 3}, [None] * 3),
        ({"gpus": "none", "min": 2}, [None] * 2),
        ({"gpus": "none", "max": 4}, [None] * 4),
        ({"gpus": [0, 2]}, [0, 2]),
        ({"gpus": [0, 1], "per_gpu": 2}, [0, 1, 0, 1]),
        ({"gpus": [0, 1], "per_gpu": 2, "max": 3}, [0, 1, 0]),
    ],
)
def test_gpus_are_filled_evenly_up_to_the_most(keys: dict[str, Any], expected: list[int | None]) -> None:
    assert places(WorkersSettings(**keys)) == expected
