"""Everybody's job is started: classes by weight, clients in equal parts, and every job once."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtts.daemon.core.inputs import Client
from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.jobs.queue import HEAD_START_S, WaitingQueue
from glmtts.daemon.core.scheduling.admission import BATCH
from glmtts.daemon.core.settings import ClassesSettings, InteractiveSettings
from glmtts.protocol.requests import PRIORITIES

from ..support.core_world import MakeJob

CLIENTS = [Client(f"uid:{number}", f"user{number}") for number in range(6)]
#: Class, client and cost of a job; costs in quarters, so that sums are exact and equal tags happen.
JOBS = st.tuples(st.sampled_from(PRIORITIES), st.sampled_from(CLIENTS), st.integers(1, 40).map(lambda n: n / 4))
quick = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def filled(make_job: MakeJob, **counts: int) -> WaitingQueue:
    queue = WaitingQueue(ClassesSettings())
    for priority, count in counts.items():
        for number in range(count):
            queue.push(make_job(priority=priority, text=f"{priority} {number}", cost_s=1.0))
    return queue


def pop(queue: WaitingQueue, now: float = 0.0) -> Job | None:
    """Start the job whose turn it is."""
    job = queue.peek(now)
    if job is not None:
        queue.take(job)
    return job


def popped(queue: WaitingQueue, count: int) -> list[Job]:
    jobs = [pop(queue) for _ in range(count)]
    return [job for job in jobs if job is not None]


def is_empty(queue: WaitingQueue) -> bool:
    lengths = [queue.length(priority) for priority in PRIORITIES]
    work = [queue.work_s(priority) for priority in PRIORITIES]
    counts = (len(queue), bool(queue), list(queue), list(queue.clients()), queue.oldest(), list(queue.in_order()))
    return (lengths, work, counts) == ([0] * 3, [0.0] * 3, (0, False, [], [], None, []))


def test_a_client_s_jobs_of_a_class_come_in_their_order(make_job: MakeJob) -> None:
    queue = filled(make_job, interactive=3)
    assert [job.request.text for job in popped(queue, 3)] == ["interactive 0", "interactive 1", "interactive 2"]
    assert pop(queue) is None
    assert is_empty(queue)


@pytest.mark.usefixtures("no_head_start")
def test_classes_share_by_weight_and_none_starves(make_job: MakeJob) -> None:
    queue = filled(make_job, vip=200, interactive=200, batch=200)
    first = Counter(job.request.priority for job in popped(queue, 21 * 4))
    assert first == {"vip": 64, "interactive": 16, "batch": 4}


def test_it_is_time_that_is_shared_and_not_jobs(make_job: MakeJob) -> None:
    queue = WaitingQueue(ClassesSettings())
    for _ in range(100):
        queue.push(make_job(priority="interactive", cost_s=1.0))
        queue.push(make_job(priority="batch", cost_s=25.0))
    had: defaultdict[str, float] = defaultdict(float)
    for job in popped(queue, 104):
        had[job.request.priority] += job.account.cost_s
    assert had == {"interactive": 100.0, "batch": 100.0} or had["interactive"] / had["batch"] == pytest.approx(4, 0.3)


@pytest.mark.usefixtures("no_head_start")
def test_a_class_is_not_made_to_pay_for_old_weights(make_job: MakeJob) -> None:
    queue = WaitingQueue(ClassesSettings(interactive=InteractiveSettings(weight=1_000)))
    for _ in range(100):
        queue.push(make_job(priority="interactive", cost_s=1.0))
        queue.push(make_job(priority="batch", cost_s=1.0))
    popped(queue, 2)
    queue.set_weights(ClassesSettings(interactive=InteractiveSettings(weight=1)))
    assert Counter(job.request.priority for job in popped(queue, 10)) == {"interactive": 5, "batch": 5}


def test_who_sends_chapters_has_no_more_time_than_who_sends_sentences(make_job: MakeJob) -> None:
    queue = WaitingQueue(ClassesSettings())
    for _ in range(200):
        queue.push(make_job(client=CLIENTS[0], cost_s=20.0))
        queue.push(make_job(client=CLIENTS[1], cost_s=1.0))
    first = Counter(job.client.user for job in popped(queue, 105))
    assert first == {"user0": 5, "user1": 100}


def test_a_job_that_was_running_goes_to_the_front_of_its_class(make_job: MakeJob) -> None:
    queue = filled(make_job, interactive=2)
    first = pop(queue)
    assert first is not None
    first.attempts = 1
    queue.settle(first)
    queue.push(first, front=True)
    assert (pop(queue), next(iter(queue)).request.text) == (first, "interactive 1")


def test_a_job_that_is_not_written_down_yet_waits_and_is_not_started(make_job: MakeJob) -> None:
    queue = filled(make_job, batch=1)
    held, gone = make_job(priority="batch", cost_s=0.0), make_job(priority="batch")
    queue.hold(held)
    queue.hold(gone)
    assert (len(queue), queue.length("batch"), queue.waiting_of("uid:1001", BATCH)) == (3, 3, 3)
    assert held in queue
    assert len(list(queue)) == 3
    assert popped(queue, 3) and queue.peek(0.0) is None
    assert (queue.oldest(), list(queue.in_order())) == (None, [])
    queue.remove(gone)
    held.account.cost_s = 2.0
    queue.push(held)
    assert (len(queue), queue.work_s("batch"), queue.oldest()) == (1, 2.0, 0.0)
    assert pop(queue) is held
    assert is_empty(queue)


def test_what_needs_a_fresh_process_comes_before_all_and_is_given_to_no_other(make_job: MakeJob) -> None:
    queue = filled(make_job, vip=1)
    job, other = make_job(priority="batch", cost_s=1.0), make_job(priority="batch", cost_s=1.0)
    for each in (job, other):
        each.needs_fresh = True
        queue.push(each, front=True)
    assert queue.wants_fresh
    assert list(queue.in_order())[:2] == [job, other]
    assert queue.ahead_of(job) == (0, 0.0)
    assert queue.pop_for_fresh() is job
    queue.remove(other)
    assert queue.pop_for_fresh() is None
    assert len(popped(queue, 2)) == 1
    assert is_empty(queue)


@given(st.data())
@quick
def test_whatever_comes_and_goes_every_job_comes_out_once_and_nothing_is_left_behind(
    make_job: MakeJob, data: st.DataObject
) -> None:
    queue = WaitingQueue(ClassesSettings())
    waiting: dict[str, Job] = {}
    held: dict[str, Job] = {}
    running: list[Job] = []
    out: Counter[str] = Counter()
    for what in data.draw(
        st.lists(st.sampled_from(["push", "hold", "let go", "take", "again", "remove"]), max_size=40)
    ):
        if what in ("push", "hold"):
            priority, client, cost_s = data.draw(JOBS)
            deadline_at = data.draw(st.sampled_from([None, 5.0, 20.0]))
            job = make_job(priority=priority, client=client, cost_s=cost_s, deadline_at=deadline_at)
            (held if what == "hold" else waiting)[job.id] = job
            (queue.hold if what == "hold" else queue.push)(job)
        elif what == "let go" and held:
            job = held.pop(data.draw(st.sampled_from(sorted(held))))
            waiting[job.id] = job
            queue.push(job)
        elif what == "take":
            first = next(queue.in_order(), None)
            taken = pop(queue, now=1_000.0)
            assert (taken is None) == (not waiting)
            assert taken is first, "what is looked ahead at starts with whose turn it is"
            if taken is not None:
                del waiting[taken.id]
                running.append(taken)
                out[taken.id] += 1
        elif what == "again" and running:
            job = running.pop(data.draw(st.integers(0, len(running) - 1)))
            out[job.id] -= 1
            job.attempts += 1
            queue.settle(job)
            waiting[job.id] = job
            queue.push(job, front=True)
        elif what == "remove" and (waiting or held):
            id = data.draw(st.sampled_from(sorted(waiting | held)))
            queue.remove((waiting | held)[id])
            waiting.pop(id, None)
            held.pop(id, None)
        everything = waiting | held
        assert (len(queue), {job.id for job in queue}) == (len(everything), set(everything))
        assert sorted(job.id for job in queue.in_order()) == sorted(waiting)
        for priority in PRIORITIES:
            of_class = [job for job in everything.values() if job.request.priority == priority]
            assert queue.length(priority) == len(of_class)
            work_s = sum(job.account.cost_s for job in of_class if job.id in waiting)
            assert queue.work_s(priority) == pytest.approx(work_s)
        for of in queue.clients():
            mine = [job for job in everything.values() if job.client == of.client]
            assert sum(of.jobs.values()) == of.count == len(mine) == queue.waiting_of(of.client.key, PRIORITIES)
            assert of.work_s == pytest.approx(sum(job.account.cost_s for job in mine if job.id in waiting))
    for job in [*held.values()]:
        queue.push(job)
    while (last := pop(queue, now=1_000.0)) is not None:
        out[last.id] += 1
    assert set(out.values()) <= {0, 1}
    assert is_empty(queue)


@given(st.lists(JOBS, min_size=1, max_size=40), st.integers(0, 20))
@quick
def test_the_order_that_is_looked_ahead_at_is_the_order_in_which_jobs_are_started(
    make_job: MakeJob, jobs: list[Any], taken: int
) -> None:
    queue = WaitingQueue(ClassesSettings())
    for priority, client, cost_s in jobs:
        queue.push(make_job(priority=priority, client=client, cost_s=cost_s))
    popped(queue, taken)
    for priority, client, cost_s in jobs[:taken]:
        queue.push(make_job(priority=priority, client=client, cost_s=cost_s))
    expected = [job.id for job in queue.in_order()]
    assert [job.id for job in queue.in_order()] == expected, "to look changes nothing"
    assert [job.id for job in popped(queue, len(queue))] == expected


@given(st.lists(JOBS, min_size=1, max_size=40), st.integers(0, 20))
@settings(quick, max_examples=100)
def test_what_stands_ahead_of_a_job_is_told_nearly_without_going_through_all(
    make_job: MakeJob, jobs: list[Any], taken: int
) -> None:
    queue = WaitingQueue(ClassesSettings())
    for priority, client, cost_s in jobs:
        queue.push(make_job(priority=priority, client=client, cost_s=cost_s))
    popped(queue, taken)
    before_s = 0.0
    for position, job in enumerate(queue.in_order()):
        told, work_s = queue.ahead_of(job)
        # One of each other client and class may be counted too many or too few. Beyond that the jobs of another class
        # are counted as if they were alike, which they are not here.
        others = len({(j.request.priority, j.client.key) for j in queue})
        longest_s = max(j.account.cost_s for j in queue)
        assert abs(told - position) <= others + len(queue) / 4
        assert abs(work_s - before_s) <= others * longest_s
        before_s += job.account.cost_s
        assert 0 <= told < len(queue)


def test_of_very_many_clients_what_stands_ahead_is_told_from_a_part_of_them(make_job: MakeJob) -> None:
    queue, rng = WaitingQueue(ClassesSettings()), random.Random(1)
    for number in range(3_000):
        client = Client(f"uid:{number % 1_000}", "user")
        queue.push(make_job(priority="batch", client=client, cost_s=rng.uniform(0.5, 5.0)))
    popped(queue, 500)
    jobs = list(queue.in_order())
    before_s = 0.0
    for position, job in enumerate(jobs):
        if position % 100 == 0:
            told, work_s = queue.ahead_of(job)
            assert abs(told - position) < 300
            assert abs(work_s - before_s) < 300 * 2.75
        before_s += job.account.cost_s


def test_heaps_stay_small_however_many_jobs_come_and_go(make_job: MakeJob) -> None:
    queue = WaitingQueue(ClassesSettings())
    stays = make_job(priority="batch", client=CLIENTS[0], cost_s=1.0, deadline_at=1e9)
    queue.push(stays)
    for number in range(2_000):
        job = make_job(priority="batch", client=CLIENTS[number % 3], cost_s=1.0, deadline_at=1e8 + number)
        queue.push(job)
        queue.remove(job)
    class_queue = queue._class_queues["batch"]
    assert len(class_queue._urgent) < 200
    assert len(class_queue._share._heap) < 200
    assert sum(len(flow.jobs) for flow in class_queue._flows.values()) == 1
    assert len(queue._classes._heap) < 200
    assert pop(queue) is stays


def test_a_sentence_in_the_wake_of_others_does_not_wait_for_a_chapter(make_job: MakeJob) -> None:
    queue = WaitingQueue(ClassesSettings())
    chapter = make_job(priority="batch", text="chapter")
    chapter.account.cost_s = 100.0
    queue.push(chapter)
    spoken = 0.0
    while True:
        sentence = make_job(text="sentence")
        sentence.account.cost_s = 2.0
        queue.push(sentence)
        job = pop(queue)
        if job is chapter:
            break
        spoken += 2.0
    # Four seconds for each of the head start's, and then it is the chapter's turn, whoever comes.
    assert HEAD_START_S * 4 <= spoken <= HEAD_START_S * 4 + 2 * 2.0
