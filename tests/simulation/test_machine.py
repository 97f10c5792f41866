"""The daemon's core through seeded lives full of accidents, and whether the simulation would notice if it were broken.

``GLMTTS_SIM_SEEDS`` (how many, or ``FIRST:LAST``) and ``GLMTTS_SIM_JOBS`` (requests in each life) make it longer; a
seed that failed is in the name of the test, and fails again with ``GLMTTS_SIM_SEEDS=SEED:SEED``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import dispatch
from glmtts.daemon.core.context import Context
from glmtts.daemon.core.dispatch import Dispatcher
from glmtts.daemon.core.jobs import Job
from glmtts.daemon.core.ledger import Ledger
from glmtts.daemon.core.pool import Pool, Worker, WorkerState
from glmtts.daemon.core.queue import WaitingQueue
from glmtts.protocol import events
from glmtts.protocol.worker import AudioChunk

from .hearing import Broken
from .world import World

JOBS = int(os.environ.get("GLMTTS_SIM_JOBS", "1000"))


def seeds() -> range:
    """Which seeds to run."""
    first, colon, last = os.environ.get("GLMTTS_SIM_SEEDS", "20").partition(":")
    return range(int(first), int(last) + 1) if colon else range(int(first))


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.timeout(600)
def test_whatever_happens_every_job_ends_once_and_nobody_hears_another_s(seed: int) -> None:
    world = World(seed, JOBS)
    try:
        world.run()
    except Exception as error:
        error.add_note(f"seed {seed}, {JOBS} requests, at {world.now} s: GLMTTS_SIM_SEEDS={seed}:{seed} replays it")
        raise
    assert world.accepted > JOBS // 10


def test_the_accidents_do_happen() -> None:
    codes = set()
    for seed in range(4):
        world = World(seed, 500)
        world.run()
        codes |= {hearing.code for hearing in world.hearings}
    assert codes >= {
        "done", "queue_full", "unavailable", "cancelled", "worker_crashed", "hung", "out_of_memory", "quarantined",
        "deadline_exceeded", "slow_consumer", "synthesis_failed", "shutting_down", "job_not_found",
    }  # fmt: skip


def test_a_seed_replays_exactly_in_another_process() -> None:
    script = "from tests.simulation.world import World; w = World(7, 150); w.run(); print(w.digest)"
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


# --- a core that is broken on purpose


def _done_twice(patch: pytest.MonkeyPatch) -> None:
    end = Dispatcher._end

    def twice(self: Dispatcher, job: Job, state: str, event: Any, body: Any) -> None:
        if isinstance(event, events.Done):
            for subscriber in job.subscribers:
                self._context.send(subscriber.to, replace(event, id=subscriber.id), body)
        end(self, job, state, event, body)

    patch.setattr(Dispatcher, "_end", twice)


def _audio_of_another(patch: pytest.MonkeyPatch) -> None:
    send = Context.send
    last: list[Any] = [b""]

    def mixed(self: Context, to: Any, event: Any, body: Any = None) -> None:
        if body is not None:
            body, last[0] = last[0] or body, body
        send(self, to, event, body)

    patch.setattr(Context, "send", mixed)


def _stream_to_whoever_waits(patch: pytest.MonkeyPatch) -> None:
    on_audio = Dispatcher.on_audio

    def to_all(self: Dispatcher, worker: Worker, message: Any, body: Any) -> None:
        job = self._ledger.live.get(message.job)
        own = job.subscribers if job else []
        if job is not None:
            job.subscribers = [s for other in self._ledger.live.values() for s in other.subscribers if s.all_events]
        on_audio(self, worker, message, body)
        if job is not None and job.live:
            job.subscribers = own

    patch.setitem(dispatch._HANDLERS, AudioChunk, to_all)


def _jobs_of_the_dead_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "_decide", lambda *_: None)


def _restarted_without_a_pause(patch: pytest.MonkeyPatch) -> None:
    def at_once(self: Pool, worker: Worker) -> None:
        worker.enter(WorkerState.BACKOFF)
        self._start(worker)

    patch.setattr(Pool, "_back_off", at_once)


def _never_restarted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pool, "_back_off", lambda _, worker: worker.enter(WorkerState.BACKOFF))


def _two_processes_in_one_place(patch: pytest.MonkeyPatch) -> None:
    stop = Pool._stop

    def spare(self: Pool, worker: Worker) -> None:
        stop(self, worker)
        if not self._stopping:
            worker.state = WorkerState.STOPPED
            self._start(worker)

    patch.setattr(Pool, "_stop", spare)


def _no_quarantine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "quarantined", lambda *_: 0)


def _hangs_go_unnoticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pool, "on_hang_check", lambda *_: None)


def _deadlines_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "on_deadline", lambda *_: None)


def _characters_not_counted_back(patch: pytest.MonkeyPatch) -> None:
    def remove(self: WaitingQueue, job: Job) -> None:
        del self._lanes[job.request.priority][job.id]

    patch.setattr(WaitingQueue, "remove", remove)


def _results_never_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "expire", lambda _, now, __: now + 60.0)


def _idle_while_jobs_wait(patch: pytest.MonkeyPatch) -> None:
    def first(self: Pool, *, brief: bool = False) -> Worker | None:  # noqa: ARG001
        worker = self.workers["w0"]
        return worker if worker.state is WorkerState.READY else None

    patch.setattr(Pool, "free", first)


@pytest.mark.parametrize(
    "broken",
    [
        _done_twice,
        _audio_of_another,
        _stream_to_whoever_waits,
        _jobs_of_the_dead_forgotten,
        _restarted_without_a_pause,
        _never_restarted,
        _two_processes_in_one_place,
        _no_quarantine,
        _hangs_go_unnoticed,
        _deadlines_forgotten,
        _characters_not_counted_back,
        _results_never_dropped,
        _idle_while_jobs_wait,
    ],
)
def test_a_broken_core_is_noticed(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(Broken):
        for seed in range(5):
            World(seed, 500).run()
