"""An exception in the core loses nothing that was decided beside it, and an effect that fails keeps nobody waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.context import INTERNAL_ERROR
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire


class Bug(Exception):
    """A bug of the test's making."""


def raises(*_: Any, **__: Any) -> Any:
    raise Bug


@pytest.fixture
def buggy(world: Any) -> Any:
    """A world with one ready worker, whose core may meet bugs."""
    world.may_fail = True
    return world


def met(world: Any) -> int:
    """How many bugs were reported."""
    return len(world.effects(effects.InternalError))


def last_event(world: Any, id: str) -> Any:
    """The one last event that a request was sent."""
    (last,) = [e.event for e in world.effects(effects.Send) if e.event.id == id and e.event.final]
    return last


def fail(world: Any, effect: effects.Effect) -> None:
    world.step(inputs.EffectFailed(effect, "Bug"))


# --- exceptions in the core


def test_a_job_that_was_sent_before_the_error_is_sent(buggy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = buggy.request(), buggy.request()
    monkeypatch.setattr(buggy.machine._recycler, "after_job", raises)
    buggy.finish(buggy.job(first))
    assert met(buggy) == 1 and last_event(buggy, first).job == buggy.job(first)
    assert [message.job for message in buggy.messages(wire.SpeakJob)] == [buggy.job(first), buggy.job(second)]


def test_a_job_is_not_running_without_having_been_sent(buggy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = buggy.machine._dispatcher._message
    monkeypatch.setattr(
        buggy.machine._dispatcher, "_message", lambda job: raises() if job.request.text == "bad" else message(job)
    )
    bad, good = buggy.request(text="bad"), buggy.request(text="good")
    assert last_event(buggy, bad).code == "unavailable" and last_event(buggy, bad).message == INTERNAL_ERROR
    assert [message.text for message in buggy.messages(wire.SpeakJob)] == ["good"]
    assert buggy.worker("w0").jobs == [buggy.job(good)]


@pytest.mark.parametrize("part", ["_admission.check", "_forecast.of", "_dispatcher.take_up"])
def test_a_request_that_meets_a_bug_is_answered_once(buggy: Any, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    owner, method = part.split(".")
    buggy.request()
    monkeypatch.setattr(getattr(buggy.machine, owner), method, raises)
    id = buggy.request(connection=2)
    assert met(buggy) >= 1 and last_event(buggy, id).code == "unavailable"
    assert len(buggy.machine._job_table.live) == 1


def test_an_operator_is_answered_though_the_answer_can_not_be_made(buggy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buggy.machine._pool, "describe", raises)
    assert last_event(buggy, buggy.operate(control.Workers)).message == INTERNAL_ERROR


def test_a_timer_that_meets_a_bug_holds_up_no_other(buggy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(buggy.machine._timers, "trim", raises)
    buggy.finish(buggy.job(buggy.request()))
    id = buggy.request(text="late", deadline_s=400.0)
    due = buggy.now + 400.0
    for timer in ("a", "b"):
        buggy.machine._context.timers.set(("trim", timer), due)
    buggy.machine._context.timers.cancel(("hang", "w0"))
    buggy.now = due
    buggy.step(inputs.TimePassed())
    assert met(buggy) >= 4 and last_event(buggy, id).code == "deadline_exceeded"
    # It is due again, but not at once.
    assert buggy.machine._context.timers.due(("trim", "a")) > due


def test_a_process_whose_end_meets_a_bug_is_replaced_and_its_job_tried_again(
    buggy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = buggy.request()
    monkeypatch.setattr(buggy.machine._pool, "_count", raises)
    buggy.die(-11)
    buggy.ready()
    assert [message.job for message in buggy.messages(wire.SpeakJob)] == [buggy.job(id)] * 2


# --- effects that fail


def test_a_worker_that_could_not_be_sent_a_job_is_given_the_next(buggy: Any) -> None:
    first, second = buggy.request(), buggy.request()
    fail(buggy, buggy.effects(effects.Tell)[-1])
    assert last_event(buggy, first).code == "unavailable"
    assert buggy.worker("w0").jobs == [buggy.job(second)]
    assert buggy.worker("w0").restarts == 0


def test_a_process_that_could_not_be_started_is_tried_again_and_leaves_none_behind(
    make_world: Callable[..., Any],
) -> None:
    world = make_world()
    (incarnation,) = world.effects(effects.Spawn)
    fail(world, incarnation)
    world.pass_time(60.0)
    assert len(world.effects(effects.Spawn)) >= 2
    assert effects.Signal(incarnation.incarnation, "kill") in world.effects(effects.Signal)


def test_a_durable_job_that_the_journal_was_not_asked_for_is_refused(make_world: Callable[..., Any]) -> None:
    world = make_world(journal="holds")
    world.ready()
    id = world.request(durable=True)
    fail(world, world.effects(effects.JournalAdd)[-1])
    assert last_event(world, id).code == "unavailable" and not world.machine._job_table.live


def test_the_end_of_a_durable_job_is_told_though_it_could_not_be_written(make_world: Callable[..., Any]) -> None:
    world = make_world(journal="holds")
    world.ready()
    id = world.request(durable=True)
    world.write()
    world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="no"))
    fail(world, world.effects(effects.JournalEnd)[-1])
    assert last_event(world, id).code == "synthesis_failed"


def test_an_event_that_could_not_be_sent_is_no_gap_that_nobody_is_told_of(buggy: Any) -> None:
    stream = buggy.request(stream=True)
    wait = buggy.request(requests.Wait(id="", v=1, job=buggy.job(stream)), connection=2)
    buggy.say(wire.AudioChunk(job=buggy.job(stream), seq=0), b"\0\0")
    lost = next(e for e in buggy.effects(effects.Send) if isinstance(e.event, events.Audio) and e.event.id == stream)
    fail(buggy, lost)
    assert last_event(buggy, stream).code == "unavailable"
    buggy.finish(buggy.job(stream), None, chunks=1)
    assert last_event(buggy, wait).job == buggy.job(stream)


def test_an_answer_that_could_not_be_sent_is_an_error_and_that_is_not_tried_for_ever(buggy: Any) -> None:
    buggy.request(requests.Ping(id="", v=1))
    fail(buggy, buggy.effects(effects.Send)[-1])
    sent = buggy.effects(effects.Send)
    assert sent[-1].event.message == INTERNAL_ERROR
    fail(buggy, sent[-1])
    assert buggy.effects(effects.Send) == sent
