"""One worker that speaks for many at once: what clients pay, what they are told, and what gives way to what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import inputs
from glmtts.daemon.core.jobs.class_queue import ClassQueue
from glmtts.daemon.core.jobs.estimates import Beside, Estimator
from glmtts.daemon.core.jobs.job import Attempt
from glmtts.daemon.core.scheduling.dispatcher import Dispatcher
from glmtts.daemon.core.scheduling.preemption import Preemption
from glmtts.daemon.core.workers.process import Process
from glmtts.protocol import control
from glmtts.protocol import worker as wire
from glmtts.protocol.worker import MAX_SUSPENDED

from ..support.batch_stage import STEP_S, BatchStage
from ..support.core_world import ALICE, BOB, MEMORY, MakeWorld, World, waiting_job

ROOT = inputs.Client("uid:0", "root", operator=True)
OPEN: dict[str, Any] = {"max_waiting": 200, "max_share": 1.0}
Break = Callable[[pytest.MonkeyPatch], None]


def wall_seconds_charged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempt, "work_s", lambda self, now=0.0: self.active_s(now))


def wall_seconds_learnt(patch: pytest.MonkeyPatch) -> None:
    learn = Estimator.learn
    patch.setattr(Estimator, "learn", lambda self, job, seconds, *_: learn(self, job, seconds))


# --- what clients pay


def jain(stage: BatchStage, clients: dict[str, str]) -> float:
    """Jain's index of the engine's time that clients had; ``clients``: how their texts begin."""
    had = [
        sum(work_s for id, work_s in stage.work_s.items() if stage.jobs[id].text.startswith(begin))
        for begin in clients.values()
    ]
    return sum(had) ** 2 / (len(had) * sum(x * x for x in had))


def one_against_fifteen() -> float:
    """One client has fifteen heavy jobs there all the time, the other one more than are being spoken."""
    stage = BatchStage(8, queue=OPEN)
    clients = {"alice": "h", "bob": "l"}
    for _ in range(2_000):
        for client, begin, most in (("alice", "h", 15), ("bob", "l", 1 + stage.at_work("l"))):
            live = sum(job.client.user == client for job in stage.world.live.values())
            for _ in range(most - live):
                stage.ask(begin * 100, client, durable=False)
        stage.step()
    return jain(stage, clients)


def test_one_who_sends_fifteen_at_a_time_gets_as_much_work_as_one_who_sends_one() -> None:
    assert one_against_fifteen() >= 0.95


def test_wall_seconds_would_not_be_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    wall_seconds_charged(monkeypatch)
    assert one_against_fifteen() < 0.95


def test_sixteen_jobs_side_by_side_are_charged_one_second_a_second() -> None:
    stage = BatchStage(16, queue=OPEN)
    for _ in range(16):
        stage.ask("a" * 500, durable=False)
    stage.run(10.0)
    charged = [job.attempt.work_s(stage.world.now) for job in stage.world.live.values()]
    assert len(charged) == 16 and sum(charged) == pytest.approx(10.0, abs=0.2)


def test_a_worker_with_several_slots_that_reports_no_work_shares_by_its_slots(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready(slots=4)
    job = world.job(world.request())
    world.pass_time(8.0)
    assert world.live[job].attempt.work_s(world.now) == pytest.approx(2.0)


def test_the_time_of_an_engine_that_stands_still_is_shared_by_its_slots_too(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready(slots=4)
    job = world.job(world.request())
    world.pass_time(1.0)
    world.say(wire.Beats(jobs=[wire.JobProgress(job, 1, None, 0.5)]))
    world.pass_time(8.0)
    attempt = world.live[job].attempt
    assert attempt.work_s(world.now) == pytest.approx(0.5 + 2.0)
    # It has only waited for its listener: a part that the worker knows better.
    world.say(wire.Beats(jobs=[wire.JobProgress(job, 2, None, 0.5)]))
    assert attempt.work_s(world.now) == pytest.approx(0.5)


@pytest.mark.parametrize("told", [0.0, 0.1])
def test_with_one_slot_a_job_takes_all_the_time_that_passes_whatever_is_reported(
    make_world: MakeWorld, told: float
) -> None:
    world = make_world()
    world.ready()
    id = world.request()
    job = world.job(id)
    world.pass_time(2.0)
    world.say(wire.Beats(jobs=[wire.JobProgress(job, 1, None, told)]))
    world.finish(job, work_s=told)
    other = world.job(world.request())
    assert world.live[other].account.cost_s == pytest.approx(2.0)


@pytest.mark.parametrize("told", [float("nan"), float("inf"), -1.0])
def test_what_is_no_time_is_not_charged(make_world: MakeWorld, told: float) -> None:
    world = make_world()
    world.ready(slots=4)
    job = world.job(world.request())
    world.pass_time(4.0)
    world.say(wire.Beats(jobs=[wire.JobProgress(job, 1, None, told)]))
    assert world.live[job].attempt.work_s(world.now) == pytest.approx(1.0)


def test_beats_end_with_the_first_job_that_the_worker_does_not_have(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready(slots=4)
    job = world.job(world.request())
    world.say(wire.Beats(jobs=[wire.JobProgress("other", 1), wire.JobProgress("third", 1), wire.JobProgress(job, 1)]))
    assert world.worker().state.value == "failed"


# --- what they are told


def flood(stage: BatchStage) -> float:
    """The part of the estimates that were within 30 % of the wait that came, of 120 jobs on 16 slots."""
    asked: dict[str, tuple[float, float]] = {}
    for number in range(120):
        id = stage.ask("a" * (80 + 37 * number % 300), f"c{number % 5}", durable=False)
        wait_s = stage.world.told(id)[0].estimated_wait_s
        asked[stage.world.job(id)] = (stage.world.now, wait_s)
    assert [wait_s for _, wait_s in asked.values()][:16] == [0.0] * 16, "a free slot takes a job at once"
    while stage.world.live:
        stage.step()
    waits = [(stage.began[job] - at, told_s) for job, (at, told_s) in asked.items() if stage.began[job] - at > 1.0]
    assert len(waits) > 80
    return sum(abs(told_s - wait_s) <= 0.3 * wait_s for wait_s, told_s in waits) / len(waits)


def flood_after_quiet_and_flood(*, fixed_steps: bool) -> float:
    """A flood after a quiet time, where the daemon has seen both before."""
    stage = BatchStage(16, fixed_steps=fixed_steps, queue=OPEN | {"interactive_workers": 0})
    for _ in range(2):
        for number in range(25):
            stage.ask("a" * (80 + 53 * number % 300), "c", durable=False)
            while stage.world.live:
                stage.step()
        within = flood(stage)
    return within


@pytest.mark.parametrize("fixed_steps", [False, True])
def test_waiting_times_are_within_30_percent_with_16_slots(*, fixed_steps: bool) -> None:
    assert flood_after_quiet_and_flood(fixed_steps=fixed_steps) >= 0.9


@pytest.mark.parametrize(("fixed_steps", "own"), [(True, 1.0), (False, 0.0)])
def test_what_other_jobs_cost_is_learnt(monkeypatch: pytest.MonkeyPatch, *, fixed_steps: bool, own: float) -> None:
    monkeypatch.setattr(Beside, "learn", lambda self, *_: setattr(self, "own", own))
    assert flood_after_quiet_and_flood(fixed_steps=fixed_steps) < 0.5


def test_wall_seconds_would_tell_other_waiting_times(monkeypatch: pytest.MonkeyPatch) -> None:
    wall_seconds_learnt(monkeypatch)
    assert flood_after_quiet_and_flood(fixed_steps=False) < 0.5


def test_who_is_refused_is_told_when_a_place_is_free() -> None:
    stage = BatchStage(4, queue={"max_waiting": 2, "max_share": 1.0})
    for _ in range(8):
        stage.ask("a" * 100, durable=False)
        stage.run(1.0)
    stage.run(30.0)
    for _ in range(6):
        stage.ask("a" * 100, durable=False)
    refused = stage.world.last(stage.ask("a" * 100, durable=False))
    assert refused.code == "queue_full"
    # Four share the engine: each takes its second in four.
    assert refused.retry_after_s == pytest.approx(4.0, rel=0.3)


def test_a_deadline_counts_with_the_jobs_that_are_spoken_beside_it() -> None:
    queue = ClassQueue()
    for client, deadline_at in ((ALICE, None), (BOB, 6.0)):
        job = waiting_job(client=client, cost_s=1.0, deadline_at=deadline_at)
        job.account.load = 4
        queue.push(job)
    first = queue.next(0.0)
    assert first is not None and first.client is BOB, "in its turn it would come too late"


# --- what gives way to what


def chapters(stage: BatchStage, count: int) -> None:
    for _ in range(count):
        stage.ask("b" * 6_000, "bob", priority="batch", durable=False)
    stage.run(1.0)


def test_an_urgent_job_gets_a_slot_at_the_next_step_and_the_batch_job_goes_on_afterwards() -> None:
    stage = BatchStage(8, queue={"interactive_workers": 0})
    chapters(stage, 8)
    asked = stage.world.now
    id = stage.ask("i" * 10)
    stage.step()
    assert stage.began[stage.world.job(id)] - asked <= STEP_S
    assert len(stage.suspended) == 1 and stage.at_work("b") == 7
    stage.run(2.0)
    assert stage.world.names(id)[-1] == "done"
    assert not stage.suspended and stage.at_work("b") == 8


def test_several_suspensions_are_under_way_at_a_time_up_to_the_bound_of_a_worker() -> None:
    stage = BatchStage(8, queue={"interactive_workers": 0})
    chapters(stage, 8)
    for _ in range(MAX_SUSPENDED + 2):
        stage.ask("i" * 500, durable=False)
    assert len(stage.world.worker().process.to_suspend) == MAX_SUSPENDED
    stage.run(0.2)
    assert stage.at_work("i") == len(stage.suspended) == MAX_SUSPENDED
    stage.run(120.0)
    assert not stage.suspended and stage.at_work("b") == 8


def test_the_batch_job_with_the_longest_way_to_go_gives_way() -> None:
    stage = BatchStage(3, queue={"interactive_workers": 0})
    for length in (4_000, 6_000, 5_000):
        stage.ask("b" * length, "bob", priority="batch", durable=False)
    stage.run(1.0)
    stage.ask("i" * 10)
    stage.step()
    assert [len(stage.jobs[id].text) for id in stage.suspended] == [6_000]


def test_no_urgent_job_lies_ready_behind_others_however_brief_jobs_were() -> None:
    stage = BatchStage(8, queue={"interactive_workers": 0})
    for _ in range(5):
        stage.world.finish(stage.world.job(stage.ask("w", durable=False)), synthesis_s=1e-4, work_s=1e-5)
        stage.running.clear()
    for _ in range(8):
        stage.ask("b" * 10, "bob", priority="batch", durable=False)
    assert stage.world.machine.state.estimator.brief
    stage.ask("i" * 10)
    assert len(stage.world.messages(wire.SuspendJob)) == 1


def test_nothing_is_suspended_while_a_slot_is_free() -> None:
    stage = BatchStage(8, queue={"interactive_workers": 0})
    chapters(stage, 7)
    stage.ask("i" * 10)
    stage.step()
    assert stage.at_work("i") == 1 and not stage.world.messages(wire.SuspendJob)


def test_batch_jobs_leave_a_slot_of_a_single_worker_to_others() -> None:
    stage = BatchStage(16)
    chapters(stage, 40)
    assert stage.at_work("b") == 15
    stage.ask("i" * 10)
    assert not stage.world.messages(wire.SuspendJob)
    stage.run(3.0)
    # Two at once: one takes the free slot, the other that of a batch job, which gets it back and not the free one.
    for _ in range(2):
        stage.ask("i" * 100)
    most = 0
    for _ in range(400):
        stage.step()
        most = max(most, stage.at_work("b"))
    assert len(stage.world.messages(wire.SuspendJob)) == 1
    assert (most, stage.at_work("b"), stage.suspended) == (15, 15, [])


def test_a_short_batch_job_takes_the_place_of_a_long_one_and_no_other() -> None:
    stage = BatchStage(4)
    chapters(stage, 3)
    stage.ask("s" * 10, "carol", priority="batch", durable=False)
    for _ in range(40):
        stage.step()
        assert len(stage.running) <= 3
    assert len(stage.world.messages(wire.SuspendJob)) == 1 and stage.at_work("b") == 3


# --- drains


def test_a_worker_that_is_replaced_takes_nothing_more_and_ends_with_its_jobs() -> None:
    stage = BatchStage(4, queue={"interactive_workers": 0})
    chapters(stage, 4)
    stage.ask("i" * 10)
    stage.run(0.1)
    stage.world.operate(control.Recycle, worker="w0")
    stage.ask("j" * 10)
    for _ in range(6_000):
        if stage.world.worker().state.value != "draining":
            break
        stage.step()
    assert stage.world.worker().state.value == "stopping"
    assert stage.world.now < 100.0 + 4 * 60.0 + 5.0
    assert sorted(job.text[0] for job in stage.jobs.values()) == ["b", "b", "b", "b", "i"], "nothing joined"


# --- memory


def never_idle(world: World, jobs: int, memory: Callable[[int], wire.Memory]) -> int:
    """Four jobs at a time, one after the other; returns after how many the process was to be replaced, 0: never."""
    world.ready(slots=4, memory=memory(0))
    waiting = [world.job(world.request(durable=False)) for _ in range(4)]
    for number in range(1, jobs):
        waiting.append(world.job(world.request(durable=False)))
        world.pass_time(0.2)
        world.finish(waiting.pop(0), memory=memory(number))
        assert world.worker().jobs
        world.forget()
        if world.worker().process.replace_reason is not None:
            return number
    return 0


LIMIT_MIB = 4_096
MIB = 1 << 20


def settled(number: int, grown_mib: float) -> wire.Memory:
    """Every third report is without working memory; the others have up to 2 GiB of it."""
    is_settled = number % 3 == 0
    work_mib = 0 if is_settled else 700 * (number % 4)
    return wire.Memory(rss=round((1_000 + grown_mib + work_mib) * MIB), settled=is_settled)


@pytest.mark.parametrize("leak_mib", [0.0, 5.0])
def test_a_leak_of_a_process_that_is_never_idle_is_found_and_working_memory_is_none(
    make_world: MakeWorld, leak_mib: float
) -> None:
    world = make_world(workers={"recycle": {"max_rss_mib": LIMIT_MIB}}, queue=OPEN)
    replaced_after = never_idle(world, 900, lambda number: settled(number, leak_mib * number))
    if not leak_mib:
        assert not replaced_after
    else:
        assert 0.5 * LIMIT_MIB < 1_000 + leak_mib * replaced_after < LIMIT_MIB


def test_working_memory_would_be_taken_for_growth(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def remember(self: Process, memory: wire.Memory | None) -> None:
        self.memory = self.floor = memory or self.memory

    monkeypatch.setattr(Process, "remember", remember)
    world = make_world(workers={"recycle": {"max_rss_mib": 2_500}}, queue=OPEN)
    assert never_idle(world, 900, lambda number: settled(number, 0.0))


def test_a_trim_among_jobs_is_judged_by_the_next_figures_without_working_memory(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready(slots=4)
    world.request()
    busy = replace(MEMORY, rss=9_000 << 20)
    world.say(wire.Trimmed(memory=busy))
    process = world.worker().process
    assert (process.memory, process.floor) == (busy, MEMORY)
    # Beside a job that runs alone it takes no other, and has working memory all the same.
    process.alone.extend(process.jobs)
    world.say(wire.Trimmed(memory=busy))
    assert process.floor == MEMORY
    world.say(wire.Trimmed(memory=replace(busy, settled=True)))
    assert process.floor is not None and process.floor.rss == 9_000 << 20


# --- broken cores


def _kept_slots_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "_has_room_for_batch", lambda *_, **__: True)


def _never_asked_to_yield(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Preemption, "_could_yield", lambda *_: [])


@pytest.mark.parametrize(
    ("break_it", "test"),
    [
        (_kept_slots_forgotten, test_batch_jobs_leave_a_slot_of_a_single_worker_to_others),
        (_never_asked_to_yield, test_an_urgent_job_gets_a_slot_at_the_next_step_and_the_batch_job_goes_on_afterwards),
        (wall_seconds_charged, test_sixteen_jobs_side_by_side_are_charged_one_second_a_second),
    ],
)
def test_a_broken_core_is_noticed(break_it: Break, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        test()


def test_texts_in_pieces_that_gave_way_count_too(make_world: MakeWorld) -> None:
    """An engine of several slots keeps the half of a segment that it made of each; it has room for a few."""
    world = make_world(limits={"rate": ""}, queue=OPEN)
    world.ready(slots=3)
    answered = 0
    for client, priority in ((ALICE, "batch"), (ALICE, "interactive"), (ROOT, "vip")):
        for _ in range(3):
            id = world.request(text="One. Two", more=True, stream=True, priority=priority, durable=False, client=client)
            for message in world.messages(wire.SuspendJob)[answered:]:
                answered += 1
                world.say(wire.Suspended(job=message.job, memory=MEMORY))
            if (job := world.job(id)) in world.worker().process.jobs:
                world.say(wire.Beats(jobs=[wire.JobProgress(job, 1, 100)]))
    assert answered == MAX_SUSPENDED == len(world.worker().process.suspended)
