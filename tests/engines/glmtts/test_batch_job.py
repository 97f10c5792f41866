"""One job of the batching engine: how much engine time it is charged."""

from __future__ import annotations

import time
from typing import Any

import pytest

from glmtts.daemon.engines.base import EngineError, Utterance
from glmtts.daemon.engines.glmtts.batch_job import BatchJob, Segment
from glmtts.daemon.engines.glmtts.speech import LONGEST_STEP_S, Choices


def test_a_process_that_stood_still_costs_no_job_its_segment() -> None:
    """A step during which the process was stopped or frozen seems to take minutes."""
    choices = Choices(use_phoneme=False, use_cache=True, sampling="ras", top_k=25, max_tokens=0)
    job = BatchJob(Utterance("text", None, None, 24_000, 0, None), choices, time.monotonic())
    generator: Any = None
    segment = Segment([1, 2], generator, [])
    job.charge(segment, 1_500.0, max_segment_s=300.0)
    assert job.work_s == segment.work_s == LONGEST_STEP_S
    with pytest.raises(EngineError, match="max_segment_s"):
        for _ in range(60):
            job.charge(segment, LONGEST_STEP_S, max_segment_s=300.0)
