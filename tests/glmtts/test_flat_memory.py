"""A worker that has spoken hundreds of jobs has no more memory than one that has spoken tens."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from glmtts.daemon.core.workers.trend import Series
from glmtts.protocol.worker import CancelJob, Failed, Finished, SuspendJob

from ..process.worker_under_test import Start, WorkerUnderTest, workers
from .test_jobs import LONG
from .upstream_root import Root, asked

_JOBS = 300
#: Until then caches fill: of voices, of upstream's filters, of the allocator.
_WARM_AFTER = 60
#: What a worker may have more at its end than after the warm-up, and from job to job all the time.
_MOST_MIB = 24
_MOST_PER_JOB_MIB = 0.1
_MIB = 1 << 20
_WORDS = ["今天", "天气", "不错", "我们", "公园", "散步", "图书馆", "实验室", "2024年", "hello", "garden", "coffee"]


@pytest.fixture
def worker(root: Root) -> Iterator[WorkerUnderTest]:
    with workers() as begin:
        # So few voices have room that they come and go all the time.
        worker = begin(**root.worker(voice_cache_mib=1))
        worker.ready()
        yield worker


def jobs(seed: int) -> Iterator[dict[str, Any]]:
    """Jobs as they come: other words, voices, rates, formats and options each time."""
    chance = random.Random(seed)
    for number in count():
        text = "".join(chance.choices(_WORDS, k=chance.randint(1, 4))) + "。"
        yield asked(
            text,
            hz=chance.choice([100.0, 150.0, 200.0, 250.0, 300.0]) + number % 40,
            sample_rate=chance.choice([8_000, 16_000, 24_000, 32_000, 48_000]),
            format=chance.choice(["wav", "pcm_s16le", "pcm_f32le", "flac"]),
            seed=number,
            options={
                "max_tokens": chance.randint(5, 25),
                "use_cache": chance.random() < 0.5,
                "use_phoneme": chance.random() < 0.3,
                "sampling": chance.choice(["ras", "topk"]),
            },
        )


def is_flat(levels: list[int]) -> None:
    """By the project's own trend, as it watches workers, and by what there is at the end."""
    series = Series()
    for number, level in enumerate(levels):
        if number >= _WARM_AFTER:
            series.add(number, level)
    growth = series.slope(4 * _MIB, 3.0)
    assert growth is None or growth.per_job < _MOST_PER_JOB_MIB * _MIB, growth
    warm, end = min(levels[_WARM_AFTER : _WARM_AFTER + 60]), min(levels[-60:])
    assert end - warm < _MOST_MIB * _MIB, (warm / _MIB, end / _MIB)


def test_three_hundred_jobs_with_faults_between_them_leave_no_memory_behind(
    root: Root, worker: WorkerUnderTest
) -> None:
    levels = []
    faults = _faults(root, worker)
    for number, job in zip(range(_JOBS), jobs(2), strict=False):
        if number % 3 == 0:
            next(faults)
        finished, _ = worker.speak(**job)
        levels.append(finished.memory.rss)
    is_flat(levels)


def _faults(root: Root, worker: WorkerUnderTest) -> Iterator[None]:
    """Jobs that fail, are refused, are cancelled or were suspended before that."""
    words = ["notanumber", "raises", "overrange", "underrange"] if root.is_stand_in else []
    while True:
        for text in [*(f"{word} 你好。" for word in words), "。。。", "Привет", "(\t你好)", "0.00001×10^3米"]:
            end, _ = worker.until_end(worker.start(**asked(text, options={"max_tokens": 10})))
            assert isinstance(end, Failed | Finished) and not getattr(end, "fatal", False)
            yield
        for message in (CancelJob, SuspendJob):
            name = worker.start(**asked(LONG, options={"max_tokens": 20}))
            worker.send(message(job=name))
            if message is SuspendJob:
                worker.send(CancelJob(job=name))
            end, _ = worker.until_end(name)
            assert isinstance(end, Failed) and end.code == "cancelled"
            yield


def test_jobs_side_by_side_leave_no_memory_behind(root: Root, start: Start) -> None:
    # GLMTTS_JOBS="1000 16" is the large version: jobs and slots, with the memory at each fiftieth job printed.
    number_of_jobs, slots = (int(one) for one in os.environ.get("GLMTTS_JOBS", "120 4").split())
    worker = start(**root.worker(voice_cache_mib=1, batching="on", slots=slots))
    worker.ready()
    coming = jobs(3)
    running = {worker.start(**next(coming)) for _ in range(slots)}
    levels: list[int] = []
    while len(levels) < number_of_jobs:
        end, _ = worker.next()
        if isinstance(end, Finished | Failed):
            assert isinstance(end, Finished), end
            running.remove(end.job)
            levels.append(end.memory.rss)
            if len(levels) % 50 == 0:
                print(f"{len(levels)} jobs: {min(levels[-50:]) / _MIB:.1f} to {max(levels[-50:]) / _MIB:.1f} MiB")
            if worker.jobs < number_of_jobs:
                running.add(worker.start(**next(coming)))
    assert not running
    is_flat(levels)


@pytest.mark.usefixtures("stand_in")
def test_a_worker_that_does_grow_is_seen_to_grow(root: Root, start: Start) -> None:
    worker = start(**root.worker())
    worker.ready()
    levels = []
    for number in range(_WARM_AFTER + 60):
        text = "你好。" if number < _WARM_AFTER or number % 8 else "leaky 你好我们去公园散步吧。"
        finished, _ = worker.speak(**asked(text, seed=number, options={"max_tokens": 15}))
        levels.append(finished.memory.rss)
    with pytest.raises(AssertionError):
        is_flat(levels)
