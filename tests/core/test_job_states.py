"""A job takes the legal ways alone."""

from __future__ import annotations

from typing import get_args

import pytest

from glmtts.daemon.core.jobs.job import TRANSITIONS, IllegalTransition
from glmtts.protocol.requests import JobState

from ..support.core_world import MakeJob


def test_an_ended_job_never_changes_again(make_job: MakeJob) -> None:
    for state in ("done", "failed", "cancelled"):
        assert not TRANSITIONS[state]
    for state in get_args(JobState):
        job = make_job()
        job.enter("running")
        job.enter("done")
        with pytest.raises(IllegalTransition):
            job.enter(state)
        assert job.state == "done"


def test_a_waiting_job_can_not_be_done(make_job: MakeJob) -> None:
    job = make_job()
    with pytest.raises(IllegalTransition, match=r"b-\d+: waiting -> done"):
        job.enter("done")
    assert job.state == "waiting"
    assert job.live


def test_clients_are_not_shown_who_a_job_belongs_to(make_job: MakeJob) -> None:
    job = make_job(text="four")
    shown = job.describe(2, 1.5, with_client=True)
    assert (shown.position, shown.estimated_wait_s, shown.client, shown.text_length) == (2, 1.5, "uid:1001", 4)
    assert not isinstance(job.describe(None, None, with_client=False).client, str)
