"""In a full table the client that holds most loses first, and hears why; its neighbours lose nothing."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import inputs
from glmtts.daemon.core.jobs import estimates, job_table
from glmtts.daemon.core.jobs.estimates import Estimator
from glmtts.daemon.core.scheduling import retry
from glmtts.daemon.core.scheduling.retry import Quarantine
from glmtts.daemon.core.shares import SharedRows, owner_of
from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire

from ..support.core_world import ALICE, BOB, MakeJob, MakeWorld, World

GATE = inputs.Client("uid:7", "gate")


def test_of_all_orders_of_rows_the_first_out_is_the_oldest_of_the_client_that_holds_most() -> None:
    rng = random.Random(1)
    rows: SharedRows[int] = SharedRows()
    model: dict[int, tuple[str, int]] = {}
    for key in range(20_000):
        client = rng.choice(("uid:1", "uid:2", "uid:3", "uid:3/a", "uid:3/b", f"uid:4/{rng.randrange(30)}"))
        size = rng.choice((1, 1, 5))
        rows.add(client, key, size)
        model[key] = (client, size)
        if rng.random() < 0.2:
            gone = rng.choice(list(model))
            assert rows.remove(model.pop(gone)[0], gone)
        while len(model) > 60:
            held: Counter[str] = Counter()
            owned: Counter[str] = Counter()
            for of, amount in model.values():
                held[of] += amount
                owned[owner_of(of)] += amount
            loser, oldest = rows.first_out()
            assert owned[owner_of(loser)] == max(owned.values())
            assert held[loser] == max(held[of] for of in held if owner_of(of) == owner_of(loser))
            assert oldest == min(key for key, (of, _) in model.items() if of == loser)
            assert rows.shares.of(loser) == held[loser] and rows.count == len(model)
            rows.remove(loser, oldest)
            del model[oldest]
    assert len(rows.shares._owners._heap) < 100


# --- ended jobs, results, keys


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_table, "MAX_ENDED", 20)
    monkeypatch.setattr(job_table, "MAX_BARE", 10)
    monkeypatch.setattr(job_table, "MAX_KEYS", 20)


def speak(world: World, client: inputs.Client, body: bytes = b"RIFF", **keys: Any) -> str:
    job = world.job(world.request(client=client, **keys))
    world.finish(job, body)
    return job


def cancel(world: World, client: inputs.Client) -> str:
    job = world.job(world.request(client=client))
    world.request(requests.Cancel(id="", v=1, job=job), client=client)
    world.say(wire.Failed(job=job, code="cancelled", message="cancelled"))
    return job


def waits(world: World, job: str, client: inputs.Client) -> Any:
    return world.last(world.request(requests.Wait(id="", v=1, job=job), client=client))


@pytest.mark.usefixtures("small")
def test_another_client_s_cancelled_jobs_and_keys_leave_a_client_its_result_key_and_failure(world: World) -> None:
    mine, keyed = speak(world, ALICE), speak(world, ALICE, key="order")
    cancelled = cancel(world, ALICE)
    for number in range(60):
        cancel(world, BOB)
        speak(world, BOB, key=f"k{number}")
    assert type(waits(world, mine, ALICE)).__name__ == "Done"
    assert waits(world, cancelled, ALICE).code == "cancelled"
    again = world.request(client=ALICE, key="order")
    assert world.last(again).job == keyed


@pytest.mark.usefixtures("small")
def test_a_cancelled_job_never_removes_a_finished_result(world: World) -> None:
    results = [speak(world, BOB) for _ in range(20)]
    for _ in range(30):
        cancel(world, ALICE)
    assert all(type(waits(world, job, BOB)).__name__ == "Done" for job in results)


@pytest.mark.usefixtures("small")
def test_a_client_hears_that_its_own_jobs_were_removed_early_and_a_stranger_does_not(world: World) -> None:
    speak(world, ALICE)
    jobs = [speak(world, BOB) for _ in range(30)]
    gone = waits(world, jobs[0], BOB)
    assert gone.code == "job_not_found" and "11 ended jobs of yours that were removed early" in gone.message
    assert "removed early" not in waits(world, jobs[0], ALICE).message


def test_the_results_that_take_most_make_room_and_their_client_hears_why(make_world: MakeWorld) -> None:
    world = make_world(queue={"keep_results_mib": 1})
    world.ready()
    mine = speak(world, ALICE, bytes(300_000))
    first = speak(world, BOB, bytes(400_000))
    second = speak(world, BOB, bytes(600_000))
    assert [type(waits(world, *of)).__name__ for of in ((mine, ALICE), (second, BOB))] == ["Done", "Done"]
    refused = waits(world, first, BOB)
    assert refused.code == "job_not_found" and "yours took the most" in refused.message
    answer = world.last(world.request(requests.GetJob(id="", v=1, job=first), client=BOB))
    assert (answer.state, "keep_results_mib" in answer.note) == ("done", True)


def test_a_stored_result_that_was_removed_early_is_explained(make_world: MakeWorld) -> None:
    world = make_world(queue={"keep_results_s": 1.0})
    world.ready()
    job = world.job(world.request(priority="batch"))
    world.finish(job, None, result=f"/results/{job}")
    world.pass_time(5.0)
    world.ends[job] = replace(world.ends[job], result="")
    assert "keep_durable_mib" in waits(world, job, ALICE).message
    answer = world.last(world.request(requests.GetJob(id="", v=1, job=job)))
    assert (answer.state, "yours took the most" in answer.note) == ("done", True)


# --- what else all clients share


def test_contents_of_one_client_push_no_other_client_s_out_of_the_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_MAX_ENTRIES", 10)
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.blame("poison", 0.0, 3_600.0, client="uid:1")
    for number in range(50):
        quarantine.blame(f"flood-{number}", 0.0, 3_600.0, client="uid:2")
    assert quarantine.deaths("poison", 1.0) == 2
    assert quarantine.deaths("flood-0", 1.0) == 0 and quarantine.deaths("flood-49", 1.0) == 1


def test_options_of_one_client_push_no_other_client_s_times_out(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_MAX_KINDS", 10)
    estimator = Estimator()
    mine = make_job(text="x" * 50, options={"mine": 1}, client=ALICE)
    for _ in range(10):
        estimator.learn(mine, 7.0)
    for number in range(50):
        estimator.learn(make_job(text="x" * 50, options={"flood": number}, client=BOB), 0.1)
    assert estimator.least_s(mine) > 3.0


def test_a_gateway_with_many_customers_leaves_places_to_others(make_world: MakeWorld) -> None:
    world = make_world(limits={"gateways": ["gate"]}, queue={"max_waiting": 10})
    ids = [world.request(client=GATE, on_behalf_of=f"c{number}") for number in range(12)]
    taken = [id for id in ids if world.names(id)[0] == "accepted"]
    assert len(taken) == 8
    refused = world.last(ids[-1])
    assert (refused.code, "customers" in refused.message) == ("queue_full", True)
    assert world.names(world.request(client=BOB)) == ["accepted"]


def test_recordings_of_one_client_leave_room_for_those_of_others(make_world: MakeWorld) -> None:
    world = make_world(limits={"recordings_mib": 10})
    wish = requests.Prompt(text="x")
    ids = [world.request(client=BOB, prompt=wish, body=bytes(3 << 20)) for _ in range(3)]
    refused = world.last(ids[2])
    assert (refused.code, "which is the share of 10 MiB" in refused.message) == ("queue_full", True)
    assert world.names(world.request(client=ALICE, prompt=wish, body=bytes(3 << 20))) == ["accepted"]


# --- what operators see


def test_limits_show_the_shares_and_the_losses_and_an_alert_names_the_client(make_world: MakeWorld) -> None:
    world = make_world(queue={"keep_results_mib": 1})
    world.ready()
    speak(world, ALICE, bytes(300_000))
    for _ in range(4):
        speak(world, BOB, bytes(400_000))
    world.pass_time(10.0)
    values = world.last(world.operate(control.GetLimits)).values
    alice, bob = values["clients"]
    assert (alice["held"]["results"], alice["removed"]) == (300_000, {})
    assert (bob["held"]["results"], bob["removed"]) == (400_000, {"results": 3})
    assert values["tables"]["results"] == {"held": 700_000, "most": 1 << 20, "clients": 2, "share": 1 << 19}
    (alert,) = world.last(world.operate(control.Status)).values["alerts"]
    assert alert["name"] == "share_exhausted"
    assert "uid:1002 holds most of all clients' results" in alert["message"]
    world.pass_time(600.0)
    assert world.last(world.operate(control.Status)).values["alerts"] == []


def test_a_client_alone_that_fills_a_table_is_told_and_raises_no_alert(make_world: MakeWorld) -> None:
    world = make_world(queue={"keep_results_mib": 1})
    world.ready()
    for _ in range(4):
        speak(world, BOB, bytes(400_000))
    world.pass_time(10.0)
    assert world.last(world.operate(control.Status)).values["alerts"] == []
