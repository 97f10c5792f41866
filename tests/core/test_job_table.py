"""Jobs are found again for as long as is promised, and memory is bounded however many there are."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core.inputs import ReplyTo
from glmtts.daemon.core.jobs import job_table as module
from glmtts.daemon.core.jobs.job import Ended, Ending, Job, Subscriber
from glmtts.daemon.core.jobs.job_table import JobTable, content_digest
from glmtts.protocol import events
from glmtts.protocol.codec import encode
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import KEY_HOLDS_S, Synthesize

from ..support.core_world import MakeJob


def end(job_table: JobTable, job: Job, body: bytes | None = None, expires_at: float = 100.0) -> None:
    event = events.Error.of("", ErrorCode.CANCELLED, "x", job=job.id)
    job_table.end(job, Ending("cancelled", event, body), expires_at)


def test_what_live_jobs_hold_is_given_back_at_their_end(make_job: MakeJob) -> None:
    job_table = JobTable()
    job = make_job(output="a.wav", recording=b"x" * 100)
    job_table.add(job)
    assert (job_table.recording_bytes, job_table.outputs, dict(job_table.live_of_client)) == (
        100,
        {"a.wav"},
        {"uid:1001": 1},
    )
    end(job_table, job)
    assert (job_table.recording_bytes, job_table.outputs, job_table.live_of_client, job_table.live) == (
        0,
        set(),
        {},
        {},
    )
    assert not job_table.describe()["connections"]
    assert isinstance(job_table.find(job.id), Ended)


def test_an_ended_job_keeps_nothing_large_but_says_how_long_its_text_was(make_job: MakeJob) -> None:
    job_table = JobTable()
    job = make_job(text="x" * 5_000, options={"a": "b" * 9_999})
    job_table.add(job)
    job.enter("cancelled")
    end(job_table, job)
    ended = job_table.find(job.id)
    assert isinstance(ended, Ended) and ended.describe(with_client=False).text_length == 5_000
    assert len(encode(ended.info)) < 500


def test_a_result_is_dropped_when_its_time_is_over_or_room_is_short(make_job: MakeJob) -> None:
    job_table = JobTable()
    jobs = [make_job() for _ in range(3)]
    for number, job in enumerate(jobs):
        job_table.add(job)
        end(job_table, job, b"x" * 100, expires_at=10.0 * (number + 1))
    assert job_table.expire(0.0, 250) == 10.0
    first = job_table.ended(jobs[0].id)
    assert first is not None
    assert (first.ending.body, first.body_dropped, job_table.result_bytes) == (None, True, 200)
    assert job_table.expire(20.0, 250) == 30.0
    assert (job_table.ended(jobs[1].id), job_table.result_bytes) == (None, 100)
    assert job_table.expire(30.0, 250) is None
    assert (job_table.result_bytes, job_table.describe()["results"]) == (0, 0)


def test_however_many_jobs_end_between_two_expiries_memory_is_bounded(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 10)
    job_table = JobTable()
    for _ in range(50):
        job = make_job()
        job_table.add(job)
        end(job_table, job, b"x")
    counts = job_table.describe()
    assert counts["ended"] == counts["results"] == job_table.result_bytes == 10


def test_a_connection_that_closes_leaves_its_jobs_to_others(make_job: MakeJob) -> None:
    job_table = JobTable()
    job, other = make_job(connection=1), make_job(connection=2)
    job_table.add(job)
    job_table.add(other)
    job_table.subscribe(job, Subscriber(ReplyTo(2), "r2", True))
    assert job_table.drop_connection(1) == [job]
    assert [s.to.connection for s in job.subscribers] == [2]
    assert job_table.drop_connection(1) == []
    assert job_table.drop_connection(2) == [other, job]
    assert not job_table.describe()["connections"]


def test_a_connection_that_is_told_no_more_of_a_job_is_forgotten(make_job: MakeJob) -> None:
    job_table = JobTable()
    job = make_job(connection=1)
    job_table.add(job)
    job_table.subscribe(job, Subscriber(ReplyTo(2), "r2", True))
    assert [s.id for s in job_table.unsubscribe(job, 1)] == ["r"]
    assert job_table.unsubscribe(job, 1) == []
    assert job_table.drop_connection(1) == [] and job_table.drop_connection(2) == [job]


def test_a_key_stands_for_its_job_for_a_day_and_for_its_client_alone(make_job: MakeJob) -> None:
    job_table = JobTable()
    job = make_job(key="k")
    job_table.add(job)
    end(job_table, job)
    job_table.expire(1_000.0, 0)
    assert job_table.with_key("uid:1001", "k", KEY_HOLDS_S - 1) == (job.id, "c")
    assert job_table.with_key("uid:1002", "k", 0.0) is None
    assert job_table.with_key("uid:1001", "k", KEY_HOLDS_S) is None


def test_a_key_of_a_job_that_was_not_accepted_after_all_stands_for_nothing(make_job: MakeJob) -> None:
    job_table = JobTable()
    job, other = make_job(key="k", output="a.wav", recording=b"x"), make_job()
    for each in (job, other):
        job_table.add(each)
    job_table.drop(job)
    job_table.forget_key(job)
    job_table.forget_key(other)
    assert job_table.with_key("uid:1001", "k", 0.0) is None
    assert (job_table.find(job.id), job_table.outputs, job_table.recording_bytes, job.subscribers) == (
        None,
        set(),
        0,
        [],
    )
    assert list(job_table.live) == [other.id]


def test_a_key_that_is_used_again_after_a_day_holds_for_another(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 2)
    job_table = JobTable()
    for name in ("a", "b", "a", "c"):
        job_table.add(make_job(key=name))
    assert [key for _, key in job_table._keys] == ["a", "c"]


def test_a_content_is_what_is_spoken_and_not_how_it_is_waited_for() -> None:
    one = Synthesize(id="1", v=1, text="a", priority="batch", deadline_s=3.0, key="x", events="final")
    same = Synthesize(id="2", v=1, text="a", key="y")
    assert content_digest(one, None) == content_digest(same, None)
    different: list[tuple[dict[str, Any], bytes | None]] = [
        ({"text": "b"}, None),
        ({"text": "a", "seed": 1}, None),
        ({"text": "a", "stream": True}, None),
        ({"text": "a"}, b"recording"),
    ]
    for keys, recording in different:
        assert content_digest(Synthesize(id="1", v=1, **keys), recording) != content_digest(same, None)
