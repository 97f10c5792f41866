"""Operators are answered, and change what they may change without harm to jobs."""

from __future__ import annotations

from typing import get_args

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.settings import Settings
from glmtts.daemon.core.state import Installation
from glmtts.protocol import control, requests

from ..support.core_world import OPERATOR, MakeSettings, MakeWorld, World


def test_a_paused_queue_accepts_with_a_warning_and_starts_when_resumed(world: World) -> None:
    world.operate(control.Pause)
    id = world.request()
    assert "paused" in world.told(id)[0].warning
    assert world.names(id) == ["accepted"]
    world.operate(control.Resume)
    assert world.names(id) == ["accepted", "started"]


def test_a_pause_is_written_down_and_the_next_daemon_begins_with_it(world: World) -> None:
    world.operate(control.Pause)
    since = world.last(world.operate(control.Status)).values["paused_since"]
    world.operate(control.Pause)
    assert [kept.since for kept in world.effects(effects.KeepPause)] == [since]
    world.operate(control.Stop)
    assert len(world.effects(effects.KeepPause)) == 1, "a restart does not resume"
    next_one = Machine(
        world.machine.settings, Installation(boot="c", version="1"), now=1.0, wall=2e9, seed=1, paused_since=since
    )
    assert (next_one.lifecycle.name, next_one.lifecycle.paused_since) == ("paused", since)
    for end in (control.Resume, control.Drain):
        todo = next_one.step(inputs.Controlled(OPERATOR, end(id="r", v=1)), 2.0, since + 2.0)
        assert effects.KeepPause(None) in todo
        next_one.step(inputs.Controlled(OPERATOR, control.Resume(id="r", v=1)), 2.5, since + 2.5)
        next_one.step(inputs.Controlled(OPERATOR, control.Pause(id="r", v=1)), 3.0, since + 3.0)


@pytest.mark.parametrize("state", ["ready", "paused", "draining", "no worker"])
def test_status_says_whether_a_new_job_would_be_spoken(make_world: MakeWorld, state: str) -> None:
    world = make_world()
    if state != "no worker":
        world.ready()
    if state == "paused":
        world.operate(control.Pause)
    if state == "draining":
        world.operate(control.Drain)
    assert world.last(world.operate(control.Status)).values["ready"] is (state == "ready")


def test_recycling_all_is_answered_with_whom_it_took(make_world: MakeWorld) -> None:
    world = make_world(2)
    world.ready("w1")
    values = world.last(world.operate(control.Recycle, worker="all")).values
    assert (values["recycled"], values["skipped"]) == (["w1"], ["w0"])
    error = world.last(world.operate(control.Recycle, worker="w9"))
    assert (error.code, error.message) == ("bad_request", "worker: 'w9' is not one of w0, w1, all")


def test_a_reload_says_what_it_applied_and_what_needs_a_restart(world: World, make_settings: MakeSettings) -> None:
    id = world.operate(control.Reload)
    (read,) = world.effects(effects.ReadSettings)
    new = make_settings(queue={"max_waiting": 1}, limits={"text_chars": 10})
    world.step(inputs.SettingsRead(new, [], read.to, read.id))
    values = world.last(id).values
    assert (values["applied"], values["restart_needed"]) == (["queue.max_waiting"], ["limits.text_chars"])
    assert (values["rolling"], values["workers"]) == ([], [])
    assert world.machine.settings.queue.max_waiting == 1
    assert world.machine.settings.limits.text_chars == Settings().limits.text_chars


def test_a_wrong_configuration_changes_nothing(world: World) -> None:
    before = world.machine.settings
    id = world.operate(control.Reload)
    (read,) = world.effects(effects.ReadSettings)
    world.step(inputs.SettingsRead(None, ["queue.max_waiting: expected a number"], read.to, read.id))
    assert world.last(id).message == "queue.max_waiting: expected a number"
    assert world.machine.settings is before


def test_an_operator_sees_and_cancels_all_jobs(world: World) -> None:
    id = world.request()
    listed = world.last(world.operate(requests.ListJobs)).jobs
    assert [(job.job, job.client) for job in listed] == [(world.job(id), "uid:1001")]
    world.operate(control.Cancel, job=world.job(id))
    assert "an operator" in world.last(id).message


@pytest.mark.parametrize("keys", [{}, {"job": "b-1", "client": "alice"}])
def test_an_operator_who_names_neither_a_job_nor_a_client_ends_nothing(world: World, keys: dict[str, str]) -> None:
    id = world.request()
    assert world.last(world.operate(control.Cancel, **keys)).code == "bad_request"
    assert world.names(id) == ["accepted", "started"]


@pytest.mark.parametrize(
    ("client", "ended"),
    [
        ("uid:1001", {"alice"}),
        ("1001", {"alice"}),
        ("alice", {"alice"}),
        ("gate/carol", {"carol"}),
        ("uid:7/carol", {"carol"}),
        ("gate", {"gate", "carol", "dave"}),
        ("uid:7", {"gate"}),
        ("eve", set()),
    ],
)
def test_an_operator_ends_all_jobs_of_a_client_by_any_name_that_it_has(
    make_world: MakeWorld, client: str, ended: set[str]
) -> None:
    world = make_world(limits={"gateways": ["gate"]})
    world.ready()
    gate = inputs.Client("uid:7", "gate")
    ids = {
        "alice": world.request(priority="batch"),
        "bob": world.request(client=inputs.Client("uid:1002", "bob")),
        "gate": world.request(client=gate),
        "carol": world.request(client=gate, on_behalf_of="carol"),
        "dave": world.request(client=gate, on_behalf_of="dave", priority="batch"),
    }
    jobs = {name: world.job(id) for name, id in ids.items()}
    values = world.last(world.operate(control.Cancel, client=client)).values
    assert {name for name, id in ids.items() if world.names(id)[-1] == "error"} == ended
    assert values == {"cancelled": len(ended), "jobs": [job for name, job in jobs.items() if name in ended]}


def test_status_counts_what_there_is(world: World) -> None:
    world.request()
    world.request()
    values = world.last(world.operate(control.Status)).values
    assert values["state"] == "running"
    assert (values["queue"]["waiting"], values["queue"]["running"], values["workers"]["busy"]) == (1, 1, 1)
    assert (values["counts"]["accepted"], values["alerts"]) == (2, [])
    (worker,) = world.last(world.operate(control.Workers)).values["workers"]
    assert (worker["name"], worker["state"], worker["pid"]) == ("w0", "busy", 4_000)


def test_every_operation_of_the_protocol_is_served(world: World) -> None:
    assert set(world.machine._controls) == set(get_args(control.ControlRequest))


def test_a_voice_whose_folder_is_gone_can_be_removed(world: World) -> None:
    world.machine.state.voices.shared["anna"] = inputs.StoredVoice("anna", "/voices/anna/r.wav", "hello")
    error = ("voice_not_found", "there is no registered voice 'anna'")
    for left in (True, False):
        id = world.operate(control.VoiceRemove, name="anna")
        world.step(inputs.VoiceStored(world.effects(effects.StoreVoice)[-1].to, id, "anna", error=error))
        assert ("removed" in getattr(world.last(id), "values", {})) is left
    assert "anna" not in world.machine.state.voices.shared


def test_what_is_experimental_in_an_engine_is_logged_once_and_shown(make_world: MakeWorld) -> None:
    world = make_world(2)
    for worker in ("w0", "w1"):
        world.ready(worker, slots=16, experimental="batching")
    assert world.last(world.operate(control.Status)).values["experimental"] == "batching"
    workers = world.last(world.operate(control.Workers)).values["workers"]
    assert [(worker["slots"], worker["experimental"]) for worker in workers] == [(16, "batching")] * 2
    logged = [log for log in world.effects(effects.Log) if log.message == "engine is experimental"]
    assert [(log.level, log.fields["what"]) for log in logged] == [("warning", "batching")]
