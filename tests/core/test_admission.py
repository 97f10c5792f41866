"""Each client has its limits, by whichever name and over however many connections, and is told exactly when to come."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import inputs
from glmtts.daemon.core.scheduling.admission import names_of
from glmtts.daemon.core.settings import ClientLimits
from glmtts.protocol import control, events, requests

from ..support.core_world import MakeSettings, MakeWorld, World
from ..support.stage import MakeStage

ALICE, BOB = inputs.Client("uid:1001", "alice"), inputs.Client("uid:1002", "bob")
GATE = inputs.Client("uid:7", "gate")


def error(world: World, **keys: Any) -> Any:
    """The error of a request that is not accepted."""
    id = world.request(**keys)
    assert world.names(id) == ["error"], "it was accepted"
    return world.last(id)


def accepted(world: World, **keys: Any) -> bool:
    return bool(world.names(world.request(**keys))[0] == "accepted")


# --- names


@pytest.mark.parametrize(
    ("client", "names"),
    [
        (ALICE, {"uid:1001", "1001", "alice"}),
        (inputs.Client("key:laptop", "laptop"), {"key:laptop", "laptop"}),
        (inputs.Client("uid:7", "gate", on_behalf_of="carol"), {"uid:7/carol", "7/carol", "gate/carol"}),
    ],
)
def test_a_client_has_these_names_in_the_configuration(client: inputs.Client, names: set[str]) -> None:
    assert set(names_of(client)) == names


@pytest.mark.parametrize("name", ["uid:1001", "1001", "alice"])
def test_a_client_s_own_limits_hold_under_any_of_its_names_and_for_nobody_else(
    make_world: MakeWorld, name: str
) -> None:
    own = ClientLimits(rate="2/minute", max_jobs=5)
    world = make_world(limits={"clients": {name: own}})
    world.ready()
    assert [accepted(world) for _ in range(2)] == [True, True]
    assert error(world).retry_after_s == 30.0
    assert all(accepted(world, client=BOB) for _ in range(5))
    assert [accepted(world, priority="batch") for _ in range(3)] == [True] * 3, "what it does not set is as for all"
    refused = error(world, priority="batch")
    assert (refused.code, "you have 5 jobs" in refused.message) == ("queue_full", True)


def test_a_key_over_tcp_has_limits_of_its_own(make_world: MakeWorld) -> None:
    world = make_world(limits={"clients": {"key:laptop": ClientLimits(rate="1/hour")}})
    laptop = inputs.Client("key:laptop", "laptop")
    assert accepted(world, client=laptop)
    assert (error(world, client=laptop).code, error(world, client=laptop).retry_after_s) == ("rate_limited", 3_600.0)


# --- gateways


def test_each_customer_of_a_gateway_has_a_rate_and_a_share_of_its_own(make_world: MakeWorld) -> None:
    world = make_world(
        limits={"gateways": ["gate"], "rate": "2/minute", "clients": {"gate/vip": ClientLimits(rate="4/minute")}},
        queue={"max_waiting": 100, "max_share": 0.05},
    )
    for customer, allowed in (("carol", 2), ("dave", 2), ("vip", 4)):
        for _ in range(allowed):
            assert accepted(world, client=GATE, on_behalf_of=customer)
        assert error(world, client=GATE, on_behalf_of=customer).code == "rate_limited"
    assert accepted(world, client=GATE), "what it asks for itself is its own"
    assert accepted(world, client=BOB)


def test_customers_of_a_gateway_are_served_in_equal_parts_with_everybody_else(make_stage: MakeStage) -> None:
    stage = make_stage(limits={"gateways": ["gate"]}, queue={"max_waiting": 100})
    for number in range(10):
        stage.world.request(text=f"carol {number}", client=GATE, on_behalf_of="carol")
    stage.world.request(text="dave", client=GATE, on_behalf_of="dave")
    stage.world.request(text="bob", client=BOB)
    stage.run(3.0)
    assert {"dave", "bob"} <= {text for _, what, text in stage.log if what == "begins"}


def test_a_class_is_the_gateway_s_and_not_its_customer_s(make_world: MakeWorld) -> None:
    world = make_world(limits={"gateways": ["gate"]}, queue={"classes": _vip_for(["gate"])})
    assert accepted(world, client=GATE, on_behalf_of="carol", priority="vip")
    world = make_world(limits={"gateways": ["gate"]}, queue={"classes": _vip_for(["carol", "gate/carol"])})
    assert error(world, client=GATE, on_behalf_of="carol", priority="vip").code == "forbidden"


def _vip_for(users: list[str]) -> Any:
    from glmtts.daemon.core.settings import ClassesSettings, VipSettings

    return ClassesSettings(vip=VipSettings(users=users))


@pytest.mark.parametrize("name", ["uid:7", "7", "gate"])
def test_a_gateway_is_known_by_any_of_its_names(make_world: MakeWorld, name: str) -> None:
    world = make_world(limits={"gateways": [name]})
    assert accepted(world, client=GATE, on_behalf_of="carol")
    assert error(world, client=BOB, on_behalf_of="carol").code == "forbidden"


# --- places


def test_many_connections_of_a_user_are_one_client(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "3/minute"})
    for connection in range(3):
        assert accepted(world, connection=connection + 1)
    assert error(world, connection=9).code == "rate_limited"


@pytest.mark.parametrize(("priority", "places"), [("interactive", 8), ("batch", 80)])
def test_one_client_can_not_fill_the_queue(make_world: MakeWorld, priority: str, places: int) -> None:
    world = make_world(queue={"max_waiting": 10, "max_waiting_batch": 100})
    for _ in range(places):
        assert accepted(world, priority=priority)
    refused = error(world, priority=priority)
    assert (refused.code, "max_share" in refused.message) == ("queue_full", True)
    for _ in range(places // 4):
        assert accepted(world, priority=priority, client=BOB)
    assert "the queue is full" in error(world, priority=priority, client=BOB).message


@pytest.mark.parametrize(("share", "places", "own"), [(0.55, 100, 55), (0.07, 100, 7), (0.01, 10, 1), (1.0, 3, 3)])
def test_a_share_is_a_whole_number_of_places_and_at_least_one(
    make_world: MakeWorld, share: float, places: int, own: int
) -> None:
    world = make_world(queue={"max_waiting": places, "max_share": share})
    world.request()
    (shown,) = world.last(world.operate(control.GetLimits)).values["clients"]
    assert shown["share"] == own


def test_batch_jobs_are_bounded_also_while_a_worker_is_kept_free_of_them(make_world: MakeWorld) -> None:
    world = make_world(2, queue={"max_waiting_batch": 4, "max_share": 1.0})
    for name in ("w0", "w1"):
        world.ready(name)
    for _ in range(5):
        assert accepted(world, priority="batch", durable=False)
    assert error(world, priority="batch", durable=False).code == "queue_full"
    assert accepted(world)


def test_durable_jobs_that_are_being_written_are_bounded_though_a_worker_is_free(make_world: MakeWorld) -> None:
    world = make_world(journal="holds", queue={"max_waiting_batch": 4, "max_share": 1.0})
    world.ready()
    ids = [world.request(priority="batch") for _ in range(6)]
    assert [world.names(id) for id in ids] == [[]] * 4 + [["error"]] * 2
    assert world.last(ids[-1]).code == "queue_full"


def test_a_full_queue_names_the_time_at_which_there_is_a_place(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_waiting": 2, "max_waiting_batch": 1, "max_share": 1.0, "preempt": False})
    world = stage.world
    world.request(text="b" * 50, priority="batch")
    world.request(text="b" * 60, priority="batch")
    for _ in range(2):
        world.request(text="x" * 30)
    for keys in ({"client": BOB}, {"client": BOB, "priority": "batch"}):
        refused = error(world, **keys)
        assert refused.code == "queue_full"
        stage.run(refused.retry_after_s - 0.02)
        assert error(world, **keys).code == "queue_full"
        stage.run(0.02)
        assert accepted(world, **keys)


def test_who_has_its_share_is_told_when_one_of_its_own_is_started(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_waiting": 10, "max_share": 0.1})
    world = stage.world
    world.request(text="x" * 50, client=BOB)
    world.request(text="x" * 50, client=BOB)
    world.request(text="x" * 40)
    refused = error(world)
    assert "max_share" in refused.message
    stage.run(refused.retry_after_s - 0.02)
    assert error(world).code == "queue_full"
    stage.run(0.02)
    assert accepted(world)


def test_who_has_all_the_jobs_that_it_may_have_is_told_when_one_is_done(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_per_client": 2})
    world = stage.world
    for running in (True, False):
        if not running:
            world.request(text="x" * 20, client=BOB)
        for _ in range(2):
            world.request(text="x" * 30)
        refused = error(world)
        assert "you have 2 jobs" in refused.message
        stage.run(refused.retry_after_s - 0.02)
        assert error(world).code == "queue_full"
        stage.run(0.02)
        assert accepted(world)
        stage.run(60.0)


def test_a_rate_names_the_exact_time(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "7/minute", "rate_batch": "3/hour"})
    for keys, count in (({}, 7), ({"priority": "batch"}, 3)):
        assert all(accepted(world, **keys) for _ in range(count))
        refused = error(world, **keys)
        world.pass_time(refused.retry_after_s - 0.002)
        assert error(world, **keys).code == "rate_limited"
        world.pass_time(0.002)
        assert accepted(world, **keys)


# --- reload


def test_a_reload_changes_limits_and_gives_nothing_back_that_was_used(
    make_world: MakeWorld, make_settings: MakeSettings
) -> None:
    world = make_world(limits={"rate": "2/minute"})
    for _ in range(2):
        accepted(world)
    world.step(inputs.SettingsRead(make_settings(limits={"rate": "4/minute"}), []))
    assert error(world).retry_after_s == 15.0
    own = {"alice": ClientLimits(rate="60/minute", max_jobs=3)}
    world.step(inputs.SettingsRead(make_settings(limits={"rate": "4/minute", "clients": own}), []))
    assert error(world).retry_after_s == 1.0
    world.pass_time(1.0)
    assert accepted(world)
    assert "you have 3 jobs" in error(world).message


# --- what operators see


def test_limits_show_what_each_has_used(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "10/minute", "gateways": ["gate"]})
    for _ in range(3):
        world.request()
    world.request(priority="batch")
    world.request(client=GATE, on_behalf_of="carol")
    values = world.last(world.operate(control.GetLimits)).values
    assert values["limits"]["rate"] == "10/minute"
    alice, carol = values["clients"]
    assert (alice["client"], alice["user"], alice["tokens"], alice["jobs"]) == ("uid:1001", "alice", 7.0, 4)
    assert (alice["waiting"], alice["share"], alice["waiting_batch"], alice["share_batch"]) == (3, 8, 1, 8_000)
    assert (alice["tokens_batch"], alice["next_batch_token_in_s"], alice["own"]) == (None, None, False)
    assert (carol["client"], carol["tokens"], carol["gateway"]) == ("uid:7/carol", 9.0, False)


@pytest.mark.parametrize("name", ["alice", "uid:1001", "gate/carol", "uid:7/carol", "key:laptop"])
def test_limits_of_a_client_that_never_came_are_shown(make_world: MakeWorld, name: str) -> None:
    world = make_world(limits={"clients": {name: ClientLimits(max_jobs=3)}})
    (shown,) = world.last(world.operate(control.GetLimits, client=name)).values["clients"]
    assert (shown["max_jobs"], shown["own"], shown["jobs"]) == (3, True, 0)


def test_a_job_that_could_not_be_written_down_leaves_its_client_all_the_room(make_world: MakeWorld) -> None:
    world = make_world(journal="fails", queue={"max_per_client": 1})
    for _ in range(3):
        assert error(world, priority="batch").code == "unavailable"
    assert accepted(world)
    assert isinstance(world.told(world.request(requests.Ping(id="", v=1)))[0], events.Pong)
