"""Cores that are broken on purpose, and the rule that each of them breaks: the simulation has to notice every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import dispatch
from glmtts.daemon.core.breaker import Breaker
from glmtts.daemon.core.context import Context
from glmtts.daemon.core.dispatch import Dispatcher
from glmtts.daemon.core.effects import Sample
from glmtts.daemon.core.gpus import Gpus
from glmtts.daemon.core.jobs import Job
from glmtts.daemon.core.ledger import Ledger
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.pool import Pool
from glmtts.daemon.core.quarantine import Quarantine
from glmtts.daemon.core.queue import WaitingQueue
from glmtts.daemon.core.reception import Reception
from glmtts.daemon.core.recycler import Recycler
from glmtts.daemon.core.scaler import Scaler
from glmtts.daemon.core.workers import Worker, WorkerState
from glmtts.protocol import events
from glmtts.protocol.worker import AudioChunk

from .accidents import Scene
from .rules import Rule

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]

# --- 1: exactly one end


def done_twice(patch: Patch) -> None:
    end = Dispatcher._end

    def twice(self: Dispatcher, job: Job, state: str, event: Any, body: Any) -> None:
        if isinstance(event, events.Done):
            for subscriber in job.subscribers:
                self._context.send(subscriber.to, replace(event, id=subscriber.id), body)
        end(self, job, state, event, body)

    patch.setattr(Dispatcher, "_end", twice)


def jobs_of_the_dead_forgotten(patch: Patch) -> None:
    patch.setattr(Dispatcher, "_decide", lambda *_: None)


def never_restarted(patch: Patch) -> None:
    patch.setattr(Pool, "_back_off", lambda _, worker: worker.enter(WorkerState.BACKOFF))


def hangs_go_unnoticed(patch: Patch) -> None:
    patch.setattr(Pool, "on_hang_check", lambda *_: None)


def a_beat_that_stands_still_counts(patch: Patch) -> None:
    moved = Pool.moved
    patch.setattr(Pool, "moved", lambda self, worker, job, done=None: moved(self, worker, job))  # noqa: ARG005


def deadlines_forgotten(patch: Patch) -> None:
    patch.setattr(Dispatcher, "on_deadline", lambda *_: None)


# --- 2: outputs, and nothing that claims to be durable


def durable_believed(patch: Patch) -> None:
    patch.setattr(Reception, "_check_allowed", lambda *_: None)


def output_of_another_attempt(patch: Patch) -> None:
    fail = Dispatcher.fail

    def taken_for_done(self: Dispatcher, job: Job, code: Any, message: str, **keys: Any) -> None:
        if code != "output_exists":
            fail(self, job, code, message, **keys)
            return
        event = events.Done(
            id="", job=job.id, format="wav", sample_rate=24_000, audio_s=1.0, waited_s=0.0, synthesis_s=0.1,
            first_audio_s=0.1, rtf=0.1, attempts=1, engine="e", voice="v", sha256="0" * 64, bytes=1,
        )  # fmt: skip
        event.path = f"/out/{job.request.output}"
        self._end(job, "done", event, None)

    patch.setattr(Dispatcher, "fail", taken_for_done)


# --- 3: one's own audio


def audio_of_another(patch: Patch) -> None:
    send = Context.send
    last: list[Any] = [b""]

    def mixed(self: Context, to: Any, event: Any, body: Any = None) -> None:
        if body is not None:
            body, last[0] = last[0] or body, body
        send(self, to, event, body)

    patch.setattr(Context, "send", mixed)


def stream_to_whoever_waits(patch: Patch) -> None:
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


# --- 4: places, and room


def two_processes_in_one_place(patch: Patch) -> None:
    stop = Pool._stop

    def spare(self: Pool, worker: Worker) -> None:
        stop(self, worker)
        if not self.stopping:
            worker.state = WorkerState.STOPPED
            self._start(worker)

    patch.setattr(Pool, "_stop", spare)


def started_without_room(patch: Patch) -> None:
    patch.setattr(Gpus, "obstacle", lambda *_: "")


def started_before_memory_is_back(patch: Patch) -> None:
    patch.setattr(Gpus, "ended", lambda *_: None)


def those_that_load_not_counted(patch: Patch) -> None:
    def free(self: Gpus, index: int, workers: Any) -> int | None:  # noqa: ARG001
        gpu = self._gpus.get(index)
        return gpu.reading.free if gpu is not None and gpu.reading.state == "ok" else None

    patch.setattr(Gpus, "free", free)


def more_workers_than_may_be(patch: Patch) -> None:
    patch.setattr(Scaler, "_counted", lambda self: [w for w in self._pool if not w.retiring and w.replaces is None])


# --- 5: quarantine


def no_quarantine(patch: Patch) -> None:
    patch.setattr(Dispatcher, "quarantined", lambda *_: 0)


def the_healthy_quarantined(patch: Patch) -> None:
    deaths = Quarantine.deaths

    def of_anybody(self: Quarantine, digest: str, now: float) -> int:
        return max([deaths(self, digest, now), *(entry.deaths for entry in self._entries.values())])

    patch.setattr(Quarantine, "deaths", of_anybody)


# --- 6: fairness


def batch_starves(patch: Patch) -> None:
    def pop(self: WaitingQueue) -> Job | None:
        for priority, lane in self._lanes.items():
            if lane:
                _, job = lane.popitem(last=False)
                self.characters[priority] -= len(job.request.text)
                return job
        return None

    patch.setattr(WaitingQueue, "pop", pop)


# --- 7: bounds


def results_never_dropped(patch: Patch) -> None:
    patch.setattr(Ledger, "expire", lambda _, now, __: now + 60.0)


def queue_without_an_end(patch: Patch) -> None:
    patch.setattr(Reception, "_check_room", lambda *_: None)


def processes_never_forgotten(patch: Patch) -> None:
    on_ended = Pool.on_ended

    def remembered(self: Pool, spawn: int, *rest: Any, **keys: Any) -> Any:
        worker = self._by_spawn.get(spawn)
        ended = on_ended(self, spawn, *rest, **keys)
        if worker is not None:
            self._by_spawn[-spawn] = worker
        return ended

    patch.setattr(Pool, "on_ended", remembered)


# --- 8: restarts


def restarted_without_a_pause(patch: Patch) -> None:
    def at_once(self: Pool, worker: Worker) -> None:
        worker.enter(WorkerState.BACKOFF)
        self._start(worker)

    patch.setattr(Pool, "_back_off", at_once)


def breaker_never_opens(patch: Patch) -> None:
    patch.setattr(Breaker, "fault", lambda *_: False)


def breaker_is_not_asked(patch: Patch) -> None:
    patch.setattr(
        Pool, "_obstacle", lambda self, worker: self._gpus.obstacle(worker.gpu, worker, self.workers.values())
    )


def samples_ask_for_samples(patch: Patch) -> None:
    on_sampled = Machine._on_sampled

    def again(self: Machine, event: Any) -> None:
        on_sampled(self, event)
        if any(worker.state is WorkerState.WAITING for worker in self._pool):
            self._context.effects.append(Sample())

    patch.setattr(Machine, "_on_sampled", again)


def recycles_count_as_faults(patch: Patch) -> None:
    count = Pool._count

    def all_of_them(self: Pool, worker: Worker, death: Any, *, faulty: bool) -> None:  # noqa: ARG001
        count(self, worker, death, faulty=True)

    patch.setattr(Pool, "_count", all_of_them)


# --- beside them


def characters_not_counted_back(patch: Patch) -> None:
    def remove(self: WaitingQueue, job: Job) -> None:
        lane = self._for_fresh if job.needs_fresh else self._lanes[job.request.priority]
        del lane[job.id]

    patch.setattr(WaitingQueue, "remove", remove)


def idle_while_jobs_wait(patch: Patch) -> None:
    def first(self: Pool, *, brief: bool = False) -> Worker | None:  # noqa: ARG001
        worker = self.workers.get("w0")
        return worker if worker is not None and worker.state is WorkerState.READY else None

    patch.setattr(Pool, "free", first)


def leaks_not_seen(patch: Patch) -> None:
    patch.setattr(Recycler, "_judge", lambda *_, **__: None)


def recycled_without_a_spare(patch: Patch) -> None:
    patch.setattr(Gpus, "spare_fits", lambda *_: False)


@dataclass(frozen=True)
class BrokenCore:
    """What is broken, the rule that has to be named for it, and the lives in which that can show."""

    rule: Rule
    break_it: Break
    jobs: int = 300
    shows_in: Callable[[Scene], bool] = lambda _: True

    def __str__(self) -> str:
        return f"{self.rule:d}-{self.break_it.__name__}"


def _many_gpus(scene: Scene) -> bool:
    return scene.gpus > 0 and scene.trust == "process" and scene.nvml == "ok"


BROKEN = [
    BrokenCore(Rule.ONE_END, done_twice),
    BrokenCore(Rule.ONE_END, jobs_of_the_dead_forgotten),
    BrokenCore(Rule.ONE_END, never_restarted),
    BrokenCore(Rule.ONE_END, hangs_go_unnoticed),
    BrokenCore(Rule.ONE_END, a_beat_that_stands_still_counts),
    BrokenCore(Rule.ONE_END, deadlines_forgotten),
    BrokenCore(Rule.OUTPUT_ONCE, durable_believed),
    BrokenCore(Rule.OUTPUT_ONCE, output_of_another_attempt),
    BrokenCore(Rule.OWN_AUDIO, audio_of_another),
    BrokenCore(Rule.OWN_AUDIO, stream_to_whoever_waits),
    BrokenCore(Rule.ROOM, two_processes_in_one_place),
    BrokenCore(Rule.ROOM, started_without_room, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, started_before_memory_is_back, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, those_that_load_not_counted, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, more_workers_than_may_be, shows_in=lambda scene: scene.gapless),
    BrokenCore(Rule.QUARANTINE, no_quarantine),
    BrokenCore(Rule.QUARANTINE, the_healthy_quarantined),
    BrokenCore(Rule.FAIR, batch_starves),
    BrokenCore(Rule.BOUNDED, results_never_dropped),
    BrokenCore(Rule.BOUNDED, queue_without_an_end),
    BrokenCore(Rule.BOUNDED, processes_never_forgotten),
    BrokenCore(Rule.NO_SPIN, restarted_without_a_pause),
    BrokenCore(Rule.NO_SPIN, breaker_never_opens),
    BrokenCore(Rule.NO_SPIN, breaker_is_not_asked),
    BrokenCore(Rule.NO_SPIN, recycles_count_as_faults),
    BrokenCore(Rule.NO_SPIN, samples_ask_for_samples, shows_in=_many_gpus),
    BrokenCore(Rule.ORDER, characters_not_counted_back),
    BrokenCore(Rule.NO_IDLENESS, idle_while_jobs_wait),
    BrokenCore(Rule.LEAK_SEEN, leaks_not_seen, jobs=1_500, shows_in=lambda scene: scene.leak_must_be_seen),
    BrokenCore(Rule.NO_GAP, recycled_without_a_spare, shows_in=lambda scene: scene.gapless),
]
