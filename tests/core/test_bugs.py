"""An exception in the core loses nothing that was decided beside it, and an effect that fails keeps nobody waiting."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.api import operator_requests
from glmtts.daemon.core.context import INTERNAL_ERROR
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World, answered


class Bug(Exception):
    """A bug of the test's making."""


def raises(*_: Any, **__: Any) -> Any:
    raise Bug


@pytest.fixture
def buggy(world: World) -> World:
    """A world with one ready worker, whose core may meet bugs."""
    world.may_fail = True
    return world


def met(world: World) -> int:
    """How many bugs were reported."""
    return len(world.effects(effects.InternalError))


def last_event(world: World, id: str) -> Any:
    """The one last event that a request was sent."""
    (last,) = [e.event for e in world.effects(effects.Send) if answered(e) == id and e.event.final]
    return last


def fail(world: World, effect: effects.Effect) -> None:
    world.step(inputs.EffectFailed(effect, "Bug"))


# --- exceptions in the core


def test_a_job_that_was_sent_before_the_error_is_sent(buggy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = buggy.request(), buggy.request()
    monkeypatch.setattr(buggy.machine.state.recycler, "after_job", raises)
    buggy.finish(buggy.job(first))
    assert met(buggy) == 1 and last_event(buggy, first).job == buggy.job(first)
    assert [message.job for message in buggy.messages(wire.SpeakJob)] == [buggy.job(first), buggy.job(second)]


def test_a_job_is_not_running_without_having_been_sent(buggy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = buggy.machine.scheduler.dispatcher
    message = dispatcher._message
    monkeypatch.setattr(dispatcher, "_message", lambda job, text: raises() if text == "bad" else message(job, text))
    bad, good = buggy.request(text="bad"), buggy.request(text="good")
    assert last_event(buggy, bad).code == "unavailable" and last_event(buggy, bad).message == INTERNAL_ERROR
    assert [message.text for message in buggy.messages(wire.SpeakJob)] == ["good"]
    assert buggy.worker("w0").jobs == [buggy.job(good)]


@pytest.mark.parametrize("part", ["scheduler.admission.check", "scheduler.forecast.of", "state.estimator.expect_s"])
def test_a_request_that_meets_a_bug_is_answered_once(buggy: World, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    path, _, method = part.rpartition(".")
    buggy.request()
    monkeypatch.setattr(attrgetter(path)(buggy.machine), method, raises)
    id = buggy.request(connection=2)
    assert met(buggy) >= 1 and last_event(buggy, id).code == "unavailable"
    assert len(buggy.live) == 1


def test_an_operator_is_answered_though_the_answer_can_t_be_made(buggy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_requests, "describe", raises)
    assert last_event(buggy, buggy.operate(control.Workers)).message == INTERNAL_ERROR


def test_a_timer_that_meets_a_bug_holds_up_no_other(buggy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(buggy.machine._timers, "trim", raises)
    buggy.finish(buggy.job(buggy.request()))
    id = buggy.request(text="late", deadline_s=400.0)
    due = buggy.now + 400.0
    for timer in ("a", "b"):
        buggy.machine.state.context.timers.set(("trim", timer), due)
    buggy.machine.state.context.timers.cancel(("hang", "w0"))
    buggy.now = due
    buggy.step(inputs.TimePassed())
    assert met(buggy) >= 4 and last_event(buggy, id).code == "deadline_exceeded"
    # It is due again, but not at once.
    again = buggy.machine.state.context.timers.due(("trim", "a"))
    assert again is not None and again > due


def test_a_process_whose_end_meets_a_bug_is_replaced_and_its_job_tried_again(
    buggy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = buggy.request()
    monkeypatch.setattr(buggy.pool.restarts, "ended", raises)
    buggy.die(-11)
    buggy.ready()
    assert [message.job for message in buggy.messages(wire.SpeakJob)] == [buggy.job(id)] * 2


def test_a_recovery_that_meets_a_bug_is_made_again_without_another_event(
    buggy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buggy.pool, "recover", raises)
    monkeypatch.setattr(buggy.pool, "_vacate", raises)
    buggy.die(-11)
    buggy.pass_time(5.0)
    assert not buggy.effects(effects.Spawn)
    monkeypatch.undo()
    buggy.pass_time(5.0)
    assert len(buggy.effects(effects.Spawn)) == 1


def test_durable_jobs_of_an_earlier_daemon_are_queued_though_that_can_t_be_logged(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_world()
    before.request(text="kept", durable=True)
    world = make_world(journal="none")
    world.may_fail = True
    log, failures = world.machine.state.context.log, iter([True])

    def log_fails_once(level: control.LogLevel, message: str, **fields: Any) -> None:
        if "earlier daemon" in message and next(failures, False):
            raise Bug
        log(level, message, **fields)

    monkeypatch.setattr(world.machine.state.context, "log", log_fails_once)
    world.step(inputs.JournalChanged("", list(before.rows.values())))
    world.ready()
    assert met(world) == 1 and world.started() == ["kept"]


# --- effects that fail


def test_a_worker_that_could_not_be_sent_a_job_is_given_the_next(buggy: World) -> None:
    first, second = buggy.request(), buggy.request()
    fail(buggy, buggy.effects(effects.Tell)[-1])
    assert last_event(buggy, first).code == "unavailable"
    assert buggy.worker("w0").jobs == [buggy.job(second)]
    assert buggy.worker("w0").restarts == 0


def test_a_process_that_could_not_be_started_is_tried_again_and_leaves_none_behind(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    (incarnation,) = world.effects(effects.Spawn)
    fail(world, incarnation)
    world.pass_time(60.0)
    assert len(world.effects(effects.Spawn)) >= 2
    assert effects.Signal(incarnation.incarnation, "kill") in world.effects(effects.Signal)


def test_a_durable_job_that_the_journal_was_not_asked_for_is_refused(make_world: MakeWorld) -> None:
    world = make_world(journal="holds")
    world.ready()
    id = world.request(durable=True)
    fail(world, world.effects(effects.JournalAdd)[-1])
    assert last_event(world, id).code == "unavailable" and not world.live


def test_the_end_of_a_durable_job_is_told_though_it_could_not_be_written(make_world: MakeWorld) -> None:
    world = make_world(journal="holds")
    world.ready()
    id = world.request(durable=True)
    world.write()
    world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="no"))
    fail(world, world.effects(effects.JournalEnd)[-1])
    assert last_event(world, id).code == "synthesis_failed"


def test_an_event_that_could_not_be_sent_is_no_gap_that_nobody_is_told_of(buggy: World) -> None:
    stream = buggy.request(stream=True)
    wait = buggy.request(requests.Wait(id="", v=1, job=buggy.job(stream)), connection=2)
    buggy.say(wire.AudioChunk(job=buggy.job(stream), seq=0), b"\0\0")
    lost = next(e for e in buggy.effects(effects.Send) if isinstance(e.event, events.Audio) and answered(e) == stream)
    fail(buggy, lost)
    assert last_event(buggy, stream).code == "unavailable"
    buggy.finish(buggy.job(stream), None, chunks=1)
    assert last_event(buggy, wait).job == buggy.job(stream)


def test_an_answer_that_could_not_be_sent_is_an_error_and_that_is_not_tried_for_ever(buggy: World) -> None:
    buggy.request(requests.Ping(id="", v=1))
    fail(buggy, buggy.effects(effects.Send)[-1])
    sent = buggy.effects(effects.Send)
    assert isinstance(sent[-1].event, events.Error) and sent[-1].event.message == INTERNAL_ERROR
    fail(buggy, sent[-1])
    assert buggy.effects(effects.Send) == sent
