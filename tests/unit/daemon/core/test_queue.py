"""Everybody's job is started: in order within a class, and by weight between classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from glmtts.daemon.core.queue import WaitingQueue
from glmtts.daemon.core.settings import ClassesSettings, InteractiveSettings

Make = Callable[..., Any]


def filled(make_job: Make, **counts: int) -> WaitingQueue:
    queue = WaitingQueue(ClassesSettings())
    for priority, count in counts.items():
        for number in range(count):
            queue.push(make_job(priority=priority, text=f"{priority} {number}"))
    return queue


def test_within_a_class_the_first_comes_first(make_job: Make) -> None:
    queue = filled(make_job, interactive=3)
    assert [queue.pop().request.text for _ in range(3)] == ["interactive 0", "interactive 1", "interactive 2"]
    assert queue.pop() is None


def test_classes_share_by_weight_and_none_starves(make_job: Make) -> None:
    queue = filled(make_job, vip=200, interactive=200, batch=200)
    first = Counter(queue.pop().request.priority for _ in range(21 * 4))
    assert first == {"vip": 64, "interactive": 16, "batch": 4}


def test_the_share_is_even_over_time_and_not_in_bursts(make_job: Make) -> None:
    queue = filled(make_job, interactive=50, batch=50)
    order = [queue.pop().request.priority for _ in range(50)]
    gaps = [index for index, priority in enumerate(order) if priority == "batch"]
    assert max(b - a for a, b in pairwise(gaps)) == 5


def test_a_class_is_not_made_to_pay_for_old_weights(make_job: Make) -> None:
    queue = WaitingQueue(ClassesSettings(interactive=InteractiveSettings(weight=1_000)))
    for _ in range(100):
        queue.push(make_job(priority="interactive"))
        queue.push(make_job(priority="batch"))
    for _ in range(2):
        queue.pop()
    queue.set_weights(ClassesSettings(interactive=InteractiveSettings(weight=1)))
    assert Counter(queue.pop().request.priority for _ in range(10)) == {"interactive": 5, "batch": 5}


def test_a_job_that_was_running_goes_to_the_front_of_its_class(make_job: Make) -> None:
    queue = filled(make_job, interactive=2)
    first = queue.pop()
    queue.push(first, front=True)
    assert queue.pop() is first


@pytest.mark.parametrize("priority", ["vip", "interactive", "batch"])
def test_positions_count_the_jobs_before_and_their_characters(make_job: Make, priority: str) -> None:
    queue = filled(make_job, vip=3, interactive=2, batch=2)
    position = characters = 0
    for expected, job in enumerate(queue):
        position, found = queue.position(job)
        assert (position, found) == (expected, characters)
        characters += len(job.request.text)
    assert queue.ahead("batch") == 7
    assert queue.characters_ahead("batch") == characters
    assert [job.id for _, job in queue.first(2)] == [job.id for job in list(queue)[:2]]
    with pytest.raises(KeyError):
        queue.position(make_job(priority=priority))


def test_characters_return_to_zero_however_jobs_leave(make_job: Make) -> None:
    queue = filled(make_job, vip=2, interactive=4, batch=3)
    for job in list(queue)[::2]:
        queue.remove(job)
    while queue.pop():
        pass
    assert set(queue.characters.values()) == {0}
    assert len(queue) == 0
    with pytest.raises(KeyError):
        queue.remove(make_job())
