"""Of each client the job that is due first; others are overtaken for a deadline only where it helps, and is owed."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtts.daemon.core.inputs import Client
from glmtts.daemon.core.jobs.class_queue import DUE_AFTER_S, ClassQueue
from glmtts.daemon.core.jobs.job import Job

from ..support.core_world import MakeJob

ALICE, BOB, CAROL = (Client(f"uid:{number}", name) for number, name in enumerate(("alice", "bob", "carol")))


def lane_of(*jobs: Job) -> ClassQueue:
    class_queue = ClassQueue()
    for job in jobs:
        class_queue.push(job)
    return class_queue


def take(class_queue: ClassQueue, now: float = 0.0) -> Job | None:
    job = class_queue.next(now)
    if job is not None:
        class_queue.take(job)
    return job


def order(class_queue: ClassQueue, now: float = 0.0) -> list[str]:
    """The texts in the order in which jobs are started, each when the one before is done."""
    texts = []
    while (job := take(class_queue, now)) is not None:
        texts.append(job.request.text)
        now += job.account.cost_s
    return texts


def test_a_client_s_own_jobs_come_by_when_they_are_due(make_job: MakeJob) -> None:
    class_queue = lane_of(
        make_job(text="first", cost_s=1.0),
        make_job(text="soon", cost_s=1.0, deadline_at=50.0),
        make_job(text="sooner", cost_s=1.0, deadline_at=20.0),
        make_job(text="second", cost_s=1.0, accepted_at=1.0),
        make_job(text="late", cost_s=1.0, deadline_at=DUE_AFTER_S + 0.5),
        make_job(text="begun before", cost_s=1.0, accepted_at=2.0, attempts=1),
    )
    expected = ["begun before", "sooner", "soon", "first", "late", "second"]
    assert [job.request.text for job in class_queue.in_order()] == expected
    assert order(class_queue) == expected


def test_a_job_without_a_deadline_is_not_overtaken_for_ever_by_urgent_ones_of_its_client(make_job: MakeJob) -> None:
    class_queue = lane_of(make_job(text="patient", cost_s=1.0))
    now = 0.0
    while now < 2 * DUE_AFTER_S:
        class_queue.push(make_job(text="urgent", cost_s=1.0, accepted_at=now, deadline_at=now + 10.0))
        job = take(class_queue, now)
        assert job is not None
        if job.request.text == "patient":
            break
        now += 1.0
    assert now <= DUE_AFTER_S


def urgent_beside_a_chapter(make_job: MakeJob, deadline_at: float, **keys: Any) -> ClassQueue:
    return lane_of(
        make_job(text="chapter", client=ALICE, cost_s=100.0),
        make_job(text="urgent", client=BOB, cost_s=2.0, deadline_at=deadline_at, **keys),
    )


def test_another_client_is_overtaken_when_the_deadline_would_be_missed_otherwise(make_job: MakeJob) -> None:
    assert order(urgent_beside_a_chapter(make_job, 101.0)) == ["urgent", "chapter"]


def test_nobody_is_overtaken_for_a_deadline_that_is_kept_anyhow(make_job: MakeJob) -> None:
    assert order(urgent_beside_a_chapter(make_job, 102.0)) == ["chapter", "urgent"]


def test_nobody_is_overtaken_for_a_deadline_that_can_not_be_kept(make_job: MakeJob) -> None:
    assert order(urgent_beside_a_chapter(make_job, 1.9)) == ["chapter", "urgent"]


def test_a_job_for_which_it_is_too_late_does_not_hide_one_that_can_be_done(make_job: MakeJob) -> None:
    class_queue = urgent_beside_a_chapter(make_job, 1.0)
    class_queue.push(make_job(text="in time", client=CAROL, cost_s=2.0, deadline_at=3.0))
    assert order(class_queue) == ["in time", "chapter", "urgent"]


def test_a_client_that_has_had_more_than_its_share_overtakes_nobody(make_job: MakeJob) -> None:
    class_queue = lane_of(make_job(client=BOB, cost_s=50.0), make_job(client=ALICE, text="a", cost_s=1.0))
    assert take(class_queue) is not None
    class_queue.push(make_job(client=ALICE, text="chapter", cost_s=100.0))
    class_queue.push(make_job(client=BOB, text="urgent", cost_s=2.0, deadline_at=60.0))
    assert order(class_queue, 50.0) == ["a", "chapter", "urgent"]


def test_who_sends_nothing_but_urgent_jobs_gets_no_more_than_others(make_job: MakeJob) -> None:
    class_queue, had, now = ClassQueue(), {"urgent": 0.0, "patient": 0.0}, 0.0
    for number in range(400):
        for client, deadline_at in ((BOB, now + 2.5), (ALICE, None)):
            if class_queue.first_of(client.key) is None:
                text = "urgent" if deadline_at else "patient"
                job = make_job(client=client, text=text, cost_s=2.0, deadline_at=deadline_at, accepted_at=number)
                class_queue.push(job)
        chosen = take(class_queue, now)
        assert chosen is not None
        had[chosen.request.text] += chosen.account.cost_s
        now += chosen.account.cost_s
    assert abs(had["urgent"] - had["patient"]) <= 3 * 2.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ALICE, BOB, CAROL]),
            st.integers(1, 20).map(float),
            st.none() | st.integers(1, 60).map(float),
        ),
        max_size=25,
    )
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_deadlines_every_job_comes_out_once_and_nothing_is_left(
    make_job: MakeJob, jobs: list[Any]
) -> None:
    class_queue = lane_of(
        *(make_job(client=client, cost_s=cost_s, deadline_at=deadline_at) for client, cost_s, deadline_at in jobs)
    )
    assert len(list(class_queue.in_order())) == len(class_queue) == len(jobs)
    first = [class_queue.first_of(client.key) for client in (ALICE, BOB, CAROL)]
    assert all(job in list(class_queue.in_order()) for job in first if job is not None)
    assert len(order(class_queue)) == len(jobs)
    assert (
        len(class_queue),
        class_queue.work_s,
        class_queue.next(0.0),
        class_queue._flows,
        class_queue._with_deadline,
    ) == (0, 0.0, None, {}, set())


def test_what_left_can_come_back_at_once(make_job: MakeJob) -> None:
    job = make_job(cost_s=1.0, deadline_at=100.0)
    class_queue = lane_of(job)
    for _ in range(100):
        class_queue.remove(job)
        assert class_queue.next(0.0) is None
        class_queue.push(job)
    assert (take(class_queue), take(class_queue), len(class_queue)) == (job, None, 0)
    assert len(class_queue._urgent) < 80
