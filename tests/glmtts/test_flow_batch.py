"""flow_batch.py makes upstream's very spectrograms and samples: the figures of flow_figures.py, judged.

With GLMTTS_ROOT they are those of real upstream.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.engines.glmtts import upstream

from .flow_figures import MASKS
from .upstream_root import REFERENCE_DEADLINE_S, Root

#: What a mask leaves of what is padded, and what any of them lets through when it is removed.
_MASKED, _LEAKED = 1e-5, 1e-3

Figures = dict[str, Any]


@pytest.fixture(scope="module")
def figures(root: Root) -> Figures:
    command = [root.python, str(Path(__file__).with_name("flow_figures.py")), str(root.folder), str(root.cache)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([_packages(), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=REFERENCE_DEADLINE_S, env=environment
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    measured: Figures = json.loads(done.stdout.splitlines()[-1])
    return measured


def _packages() -> str:
    """The folder that has this project's package."""
    return str(Path(upstream.__file__).parents[4])


def test_it_makes_upstreams_very_spectrogram(figures: Figures) -> None:
    assert figures["unpadded"] == 0.0


def test_what_is_padded_is_not_heard(figures: Figures) -> None:
    assert 0.0 < figures["padded"] < _MASKED


@pytest.mark.parametrize("mask", MASKS)
def test_each_mask_is_needed(figures: Figures, mask: str) -> None:
    assert figures["without"][mask] > _LEAKED


def test_it_does_not_depend_on_runs_beside_it(figures: Figures) -> None:
    assert figures["beside others"] == [True, True]


def test_a_cancelled_run_leaves_nothing(figures: Figures) -> None:
    assert figures["left of a cancelled run"] == 0


def test_vocoders_draw_the_random_numbers_of_the_job_and_no_others(figures: Figures) -> None:
    for vocoder in figures["vocoders"]:
        assert vocoder["difference"] == 0.0
        assert vocoder["loudest"] > 0.0
        assert vocoder["undisturbed"]


def test_what_is_kept_of_a_voice_counts_in_its_bytes(figures: Figures) -> None:
    kept = figures["modulations"]
    assert kept["after"] - kept["before"] == kept["of them"] > 0


def test_a_voice_is_not_heard_anew_because_others_have_modulations(figures: Figures) -> None:
    assert figures["heard again"] == [1, 1, 1]


def test_a_changed_checkout_is_refused_with_the_remedy(figures: Figures) -> None:
    different, incomplete = figures["changed checkouts"]
    assert "its result differs by" in different
    assert "AttributeError" in incomplete
    assert all('batching = "off"' in refusal for refusal in (different, incomplete))
