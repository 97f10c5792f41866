"""Cores that are broken on purpose, and the rule that each of them breaks: the simulation has to notice every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import dispatch, lane, preemption, reception
from glmtts.daemon.core.admission import Admission
from glmtts.daemon.core.breaker import Breaker
from glmtts.daemon.core.context import Context
from glmtts.daemon.core.dispatch import Dispatcher
from glmtts.daemon.core.durability import Durability
from glmtts.daemon.core.effects import Sample, SettleOutput, Tell
from glmtts.daemon.core.endings import Endings
from glmtts.daemon.core.estimate import Estimator
from glmtts.daemon.core.fair import FairShare
from glmtts.daemon.core.fates import Fates
from glmtts.daemon.core.gpus import Gpus
from glmtts.daemon.core.jobs import Ending, Job
from glmtts.daemon.core.lane import Lane
from glmtts.daemon.core.ledger import Ledger
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.pool import Pool
from glmtts.daemon.core.preemption import Preemption
from glmtts.daemon.core.quarantine import Quarantine
from glmtts.daemon.core.queue import WaitingQueue
from glmtts.daemon.core.rate import RateLimiter
from glmtts.daemon.core.reception import Reception
from glmtts.daemon.core.recycler import Recycler
from glmtts.daemon.core.scaler import Scaler
from glmtts.daemon.core.workers import Worker, WorkerState
from glmtts.protocol import events
from glmtts.protocol.worker import AudioChunk, ResumeJob

from .accidents import Scene
from .rules import Rule

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]

# --- 1: exactly one end


def done_twice(patch: Patch) -> None:
    end = Endings.end

    def twice(self: Endings, job: Job, ending: Ending) -> None:
        if isinstance(ending.event, events.Done):
            for subscriber in job.subscribers:
                self.send(subscriber.to, subscriber.id, ending)
        end(self, job, ending)

    patch.setattr(Endings, "end", twice)


def jobs_of_the_dead_forgotten(patch: Patch) -> None:
    patch.setattr(Fates, "decide", lambda *_, **__: None)


def never_restarted(patch: Patch) -> None:
    patch.setattr(Pool, "_back_off", lambda _, worker: worker.enter(WorkerState.BACKOFF))


def hangs_go_unnoticed(patch: Patch) -> None:
    patch.setattr(Pool, "on_hang_check", lambda *_: None)


def a_beat_that_stands_still_counts(patch: Patch) -> None:
    moved = Pool.moved
    patch.setattr(Pool, "moved", lambda self, worker, job, done=None: moved(self, worker, job))  # noqa: ARG005


def deadlines_forgotten(patch: Patch) -> None:
    patch.setattr(Dispatcher, "on_deadline", lambda *_: None)


def put_aside_and_forgotten(patch: Patch) -> None:
    patch.setattr(Dispatcher, "_go_on", lambda *_: None)


def gone_on_with_and_still_aside(patch: Patch) -> None:
    def resume(self: Pool, worker: Worker, job: str) -> None:
        self._context.effects.append(Tell(worker.spawn, ResumeJob(job=job)))

    patch.setattr(Pool, "resume", resume)


# --- 2: outputs, and what is durable


def accepted_before_it_is_on_disk(patch: Patch) -> None:
    add = Durability.add

    def at_once(self: Durability, job: Job, subscriber: Any) -> None:
        add(self, job, subscriber)
        if subscriber.all_events:
            event = events.Accepted(id=subscriber.id, job=job.id, position=0, queue_size=1)
            self._context.send(subscriber.to, event)

    patch.setattr(Durability, "add", at_once)


def ended_before_that_is_on_disk(patch: Patch) -> None:
    end = Endings.end

    def at_once(self: Endings, job: Job, ending: Ending) -> None:
        end(self, job, ending)
        if job.durable:
            self._tell(job, ending)

    patch.setattr(Endings, "end", at_once)


def a_recovered_job_is_forgotten(patch: Patch) -> None:
    changed = Durability.on_changed

    def but_the_first(self: Durability, event: Any) -> None:
        changed(self, replace(event, rows=event.rows[1:]))

    patch.setattr(Durability, "on_changed", but_the_first)


def attempts_of_the_last_daemon_not_counted(patch: Patch) -> None:
    recover = Durability._recover
    patch.setattr(Durability, "_recover", lambda self, row: recover(self, replace(row, attempts=0)))


def ended_jobs_spoken_again(patch: Patch) -> None:
    on_written = Endings.on_written

    def again(self: Endings, event: Any) -> None:
        job = self._ledger.live.get(event.job)
        if job is not None and job.ending is not None and event.job.endswith("7"):
            end, job.ending = job.ending, None
            self.end(job, end)
            return
        on_written(self, event)

    patch.setattr(Endings, "on_written", again)


def outputs_settled_too_early(patch: Patch) -> None:
    decide = Fates.decide

    def and_settled(self: Fates, death: Any, jobs: list[str], culprits: Any = None) -> None:
        for job in filter(None, map(self._ledger.live.get, jobs)):
            if job.output_path:
                self._context.effects.append(SettleOutput(job.id, job.output_path, wanted=True))
        decide(self, death, jobs, culprits)

    patch.setattr(Fates, "decide", and_settled)


def output_of_another_attempt(patch: Patch) -> None:
    fail = Endings.fail

    def taken_for_done(self: Endings, job: Job, code: Any, message: str, **keys: Any) -> None:
        if code != "output_exists":
            fail(self, job, code, message, **keys)
            return
        event = events.Done(
            id="", job=job.id, format="wav", sample_rate=24_000, audio_s=1.0, waited_s=0.0, synthesis_s=0.1,
            first_audio_s=0.1, rtf=0.1, attempts=1, engine="e", voice="v", sha256="0" * 64, bytes=1,
        )  # fmt: skip
        event.path = f"/out/{job.request.output}"
        self.end(job, Ending("done", event))

    patch.setattr(Endings, "fail", taken_for_done)


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


def results_for_everybody(patch: Patch) -> None:
    find = Durability.find
    patch.setattr(Durability, "find", lambda self, to, request, _: find(self, to, request, None))


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
    patch.setattr(Fates, "deaths_of", lambda *_: 0)


def those_aside_are_blamed(patch: Patch) -> None:
    blame = Fates._blame

    def all_of_them(self: Fates, jobs: list[Job], death: Any) -> None:
        aside = [job for job in self._ledger.live.values() if job.suspended]
        blame(self, jobs + aside, death)

    patch.setattr(Fates, "_blame", all_of_them)


def the_healthy_quarantined(patch: Patch) -> None:
    deaths = Quarantine.deaths

    def of_anybody(self: Quarantine, digest: str, now: float) -> int:
        return max([deaths(self, digest, now), *(entry.deaths for entry in self._entries.values())])

    patch.setattr(Quarantine, "deaths", of_anybody)


# --- 6: fairness


def batch_starves(patch: Patch) -> None:
    def peek(self: WaitingQueue, now: float, without: Any = ()) -> Job | None:
        waiting = (lane for priority, lane in self._lanes.items() if len(lane) and priority not in without)
        first = next(waiting, None)
        return None if first is None else first.next(now)

    patch.setattr(WaitingQueue, "peek", peek)


def weights_ignored(patch: Patch) -> None:
    patch.setattr(FairShare, "weight", lambda *_: 1.0)


def a_book_is_served_first(patch: Patch) -> None:
    def first(self: Lane, now: float) -> Job | None:  # noqa: ARG001
        flow = next(iter(self._flows.values()), None)
        return flow.jobs[0][2] if flow is not None else None

    patch.setattr(Lane, "next", first)


def jobs_counted_for_time(patch: Patch) -> None:
    patch.setattr(Estimator, "expect_s", lambda *_: 0.1)
    patch.setattr(WaitingQueue, "charge", lambda *_: None)


def never_put_aside(patch: Patch) -> None:
    patch.setattr(Preemption, "look", lambda *_: None)


def deadlines_ignored_in_the_order(patch: Patch) -> None:
    patch.setattr(lane, "due", lambda job: job.accepted_at)


def given_up_though_there_is_time(patch: Patch) -> None:
    patch.setattr(Estimator, "least_s", lambda self, job: 3 * self.expect_s(job))


# --- 7: bounds


def results_never_dropped(patch: Patch) -> None:
    patch.setattr(Ledger, "expire", lambda _, now, __: now + 60.0)


def queue_without_an_end(patch: Patch) -> None:
    patch.setattr(Admission, "check", lambda self, client, *_: self._remember(client))


def rates_of_connections(patch: Patch) -> None:
    synthesize = Reception.synthesize
    connection = [0]

    def remembered(self: Reception, event: Any, request: Any) -> None:
        connection[0] = event.to.connection
        synthesize(self, event, request)

    patch.setattr(Reception, "synthesize", remembered)
    take = RateLimiter.take
    patch.setattr(
        RateLimiter, "take", lambda self, client, rate, now: take(self, f"{client} {connection[0]}", rate, now)
    )


def rates_forgotten_by_a_reload(patch: Patch) -> None:
    apply = Admission.apply

    def and_forgotten(self: Admission) -> None:
        apply(self)
        self._rate, self._rate_batch = RateLimiter(), RateLimiter()

    patch.setattr(Admission, "apply", and_forgotten)


def customers_take_what_their_gateway_has_not(patch: Patch) -> None:
    patch.setattr(reception, "is_named", lambda *_: True)


def as_many_aside_as_it_takes(patch: Patch) -> None:
    patch.setattr(preemption, "MAX_ASIDE", 100)
    patch.setattr(Preemption, "goes_before", lambda *_: True)


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


def work_not_counted_back(patch: Patch) -> None:
    remove = Lane.remove

    def without_work(self: Lane, job: Job) -> None:
        work_s = self.work_s
        remove(self, job)
        self.work_s = work_s

    patch.setattr(Lane, "remove", without_work)


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
    #: Accidents without which it shows sooner.
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule:d}-{self.break_it.__name__}"


def _many_gpus(scene: Scene) -> bool:
    return scene.gpus > 0 and scene.trust == "process" and scene.nvml == "ok"


def _with_ends(scene: Scene) -> bool:
    return scene.journal and scene.daemon_ends > 0


def _violent(scene: Scene) -> bool:
    return scene.journal and scene.violence == 1.0


def _with_rates(scene: Scene) -> bool:
    return bool(scene.settings.limits.rate)


def _puts_aside(scene: Scene) -> bool:
    return scene.settings.queue.preempt and scene.slots == 1


#: Jobs that hang are long, and a reload changes the weights.
_CALM = ("bad_jobs", "crashes", "killers", "reloads")


def _crowded(scene: Scene) -> bool:
    settings = scene.settings
    alike = settings.queue.classes.interactive.weight == settings.queue.classes.batch.weight
    unlimited = settings.queue.max_waiting >= 8 and not settings.limits.rate
    return scene.rush > 1 and alike and unlimited and not settings.queue.interactive_workers and not scene.brief


def _unlike(scene: Scene) -> bool:
    classes, queue = scene.settings.queue.classes, scene.settings.queue
    return scene.rush > 1 and classes.batch.weight > classes.interactive.weight and not queue.interactive_workers


BROKEN = [
    BrokenCore(Rule.ONE_END, done_twice),
    BrokenCore(Rule.ONE_END, jobs_of_the_dead_forgotten),
    BrokenCore(Rule.ONE_END, never_restarted),
    BrokenCore(Rule.ONE_END, hangs_go_unnoticed),
    BrokenCore(Rule.ONE_END, a_beat_that_stands_still_counts),
    BrokenCore(Rule.ONE_END, deadlines_forgotten),
    BrokenCore(Rule.ONE_END, put_aside_and_forgotten),
    BrokenCore(Rule.ORDER, gone_on_with_and_still_aside),
    BrokenCore(Rule.OUTPUT_ONCE, accepted_before_it_is_on_disk),
    BrokenCore(Rule.OUTPUT_ONCE, ended_before_that_is_on_disk),
    BrokenCore(Rule.OUTPUT_ONCE, a_recovered_job_is_forgotten, shows_in=_with_ends),
    BrokenCore(Rule.OUTPUT_ONCE, attempts_of_the_last_daemon_not_counted, shows_in=_with_ends),
    BrokenCore(Rule.OUTPUT_ONCE, ended_jobs_spoken_again),
    BrokenCore(Rule.OUTPUT_ONCE, outputs_settled_too_early, shows_in=_violent),
    BrokenCore(Rule.OUTPUT_ONCE, output_of_another_attempt),
    BrokenCore(Rule.OWN_AUDIO, audio_of_another),
    BrokenCore(Rule.OWN_AUDIO, stream_to_whoever_waits),
    BrokenCore(Rule.OWN_AUDIO, results_for_everybody, shows_in=_with_ends),
    BrokenCore(Rule.ROOM, two_processes_in_one_place),
    BrokenCore(Rule.ROOM, started_without_room, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, started_before_memory_is_back, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, those_that_load_not_counted, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, more_workers_than_may_be, shows_in=lambda scene: scene.gapless),
    BrokenCore(Rule.QUARANTINE, no_quarantine),
    BrokenCore(Rule.QUARANTINE, the_healthy_quarantined),
    BrokenCore(Rule.QUARANTINE, those_aside_are_blamed, shows_in=_puts_aside),
    BrokenCore(Rule.FAIR, batch_starves, jobs=1_000, shows_in=_crowded, without=_CALM),
    BrokenCore(Rule.FAIR, weights_ignored, shows_in=_unlike, without=_CALM),
    BrokenCore(Rule.FAIR, a_book_is_served_first),
    BrokenCore(Rule.FAIR, jobs_counted_for_time),
    BrokenCore(Rule.FAIR, never_put_aside, shows_in=_puts_aside),
    BrokenCore(Rule.FAIR, deadlines_ignored_in_the_order),
    BrokenCore(Rule.ONE_END, given_up_though_there_is_time),
    BrokenCore(Rule.BOUNDED, results_never_dropped),
    BrokenCore(Rule.BOUNDED, queue_without_an_end),
    BrokenCore(Rule.BOUNDED, rates_of_connections, shows_in=_with_rates),
    BrokenCore(Rule.BOUNDED, rates_forgotten_by_a_reload, shows_in=_with_rates),
    BrokenCore(Rule.BOUNDED, customers_take_what_their_gateway_has_not),
    BrokenCore(Rule.BOUNDED, as_many_aside_as_it_takes, shows_in=_puts_aside),
    BrokenCore(Rule.BOUNDED, processes_never_forgotten),
    BrokenCore(Rule.NO_SPIN, restarted_without_a_pause),
    BrokenCore(Rule.NO_SPIN, breaker_never_opens),
    BrokenCore(Rule.NO_SPIN, breaker_is_not_asked),
    BrokenCore(Rule.NO_SPIN, recycles_count_as_faults),
    BrokenCore(Rule.NO_SPIN, samples_ask_for_samples, shows_in=_many_gpus),
    BrokenCore(Rule.ORDER, work_not_counted_back),
    BrokenCore(Rule.NO_IDLENESS, idle_while_jobs_wait),
    BrokenCore(Rule.LEAK_SEEN, leaks_not_seen, jobs=1_500, shows_in=lambda scene: scene.leak_must_be_seen),
    BrokenCore(Rule.NO_GAP, recycled_without_a_spare, shows_in=lambda scene: scene.gapless),
]
