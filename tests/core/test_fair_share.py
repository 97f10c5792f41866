"""Everybody who has work waiting gets his share of the time, whoever asks for how much."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.daemon.core.jobs.fair_share import FairShare

#: Flows with a weight and the lengths of their pieces, over and over.
FLOWS = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.floats(0.5, 16.0), st.lists(st.floats(0.01, 100.0), min_size=1, max_size=5)),
    min_size=2,
)
quick = settings(max_examples=40)


def shared(flows: dict[str, tuple[float, list[float]]]) -> FairShare:
    share = FairShare()
    share.set_weights({flow: weight for flow, (weight, _) in flows.items()})
    for flow in flows:
        share.wake(flow)
    return share


def give(share: FairShare, flow: str, seconds: float, *, more: bool) -> None:
    """Serve a flow, and be through with it."""
    share.serve(flow, seconds, more=more)
    share.settle(flow, seconds, seconds)
    share.elapse(seconds)


@quick
@given(FLOWS, st.integers(1, 200))
def test_two_flows_that_always_have_work_never_differ_by_more_than_their_longest_pieces(
    flows: dict[str, tuple[float, list[float]]], rounds: int
) -> None:
    share, served = shared(flows), dict.fromkeys(flows, 0.0)
    pieces = {flow: itertools.cycle(lengths) for flow, (_, lengths) in flows.items()}
    bound = {flow: max(lengths) / weight for flow, (weight, lengths) in flows.items()}
    for _ in range(rounds):
        flow = share.next()
        assert flow is not None
        seconds = next(pieces[flow])
        share.serve(flow, seconds, more=True)
        served[flow] += seconds / flows[flow][0]
        for a, b in itertools.combinations(flows, 2):
            assert abs(served[a] - served[b]) <= bound[a] + bound[b] + 1e-6


@quick
@given(FLOWS, st.data())
def test_what_is_given_before_it_is_done_and_corrected_after_is_as_fair(
    flows: dict[str, tuple[float, list[float]]], data: st.DataObject
) -> None:
    # Each piece is charged by a wrong estimate first, and by what it took when it is done.
    share, served = shared(flows), dict.fromkeys(flows, 0.0)
    pieces = {flow: itertools.cycle(lengths) for flow, (_, lengths) in flows.items()}
    for _ in range(60):
        flow = share.next()
        assert flow is not None
        weight, _ = flows[flow]
        seconds, expected = next(pieces[flow]), data.draw(st.floats(0.01, 100.0))
        share.serve(flow, expected, more=True)
        share.settle(flow, expected, seconds)
        served[flow] += seconds / weight
    bound = {flow: max(lengths) / weight for flow, (weight, lengths) in flows.items()}
    for a, b in itertools.combinations(flows, 2):
        assert abs(served[a] - served[b]) <= bound[a] + bound[b] + 1e-6


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["wake", "sleep", "serve"]), st.floats(0.0, 50.0)),
        max_size=150,
    )
)
def test_nobody_starves_whatever_comes_and_goes(events: list[tuple[str, str, float]]) -> None:
    share = FairShare()
    share.wake("patient")
    for flow, what, seconds in events:
        if what == "wake":
            share.wake(flow)
        elif what == "sleep":
            share.sleep(flow)
        elif (chosen := share.next()) is not None and chosen != "patient":
            share.serve(chosen, max(1.0, seconds), more=flow != chosen)
    # The others have work for ever, and in every round somebody comes anew: it is before all of these.
    for flow in "abcdef":
        share.wake(flow)
    for number in range(20):
        share.wake(f"new {number}")
        chosen = share.next()
        assert chosen is not None
        if chosen == "patient":
            return
        share.serve(chosen, 10.0, more=True)
    raise AssertionError("20 others went before one that had waited for longer")


def test_who_asked_for_nothing_has_no_credit_for_it_and_does_not_wait_for_a_round_of_the_others() -> None:
    share = FairShare()
    share.wake("busy")
    for _ in range(100):
        give(share, "busy", 10.0, more=True)
    share.wake("idle")
    order = []
    for _ in range(10):
        flow = share.next()
        assert flow is not None
        order.append(flow)
        give(share, flow, 10.0, more=True)
    # At the same tag, who has waited for longer goes first.
    assert order[:2] == ["busy", "idle"]
    assert order.count("idle") == 5


def test_who_comes_and_goes_between_his_turns_gains_nothing() -> None:
    share = FairShare()
    served = {"steady": 0.0, "jumpy": 0.0}
    share.wake("steady")
    for _ in range(100):
        share.wake("jumpy")
        flow = share.next()
        assert flow is not None
        share.serve(flow, 1.0, more=flow == "steady")
        served[flow] += 1.0
        share.sleep("jumpy")
    assert served == {"steady": 50.0, "jumpy": 50.0}


@quick
@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 20.0)), max_size=30), st.booleans())
def test_what_is_charged_for_and_not_taken_is_given_back(rests: list[tuple[float, float]], waits: bool) -> None:
    share = FairShare()
    for flow in ("a", "b"):
        share.wake(flow)
    for flow in ("a", "b"):
        give(share, flow, 100.0, more=waits)
    for charged_s, took_s in rests:
        share.resume("a", charged_s)
        share.settle("a", charged_s, took_s)
    assert share.had("a") == pytest.approx(100.0 + sum(took_s for _, took_s in rests))
    assert (share.had("b"), share.tag("b")) == (100.0, 100.0)


def test_who_comes_anew_is_not_behind_for_what_was_charged_and_never_taken() -> None:
    share = FairShare()
    share.wake("busy")
    # Two workers begin with a hundred seconds each, and are called off after one.
    for _ in range(2):
        share.serve("busy", 100.0, more=True)
    share.wake("new")
    assert share.next() == "new"
    for _ in range(2):
        share.settle("busy", 100.0, 1.0)
    share.serve("new", 3.0, more=True)
    share.settle("new", 3.0, 3.0)
    assert (share.tag("busy"), share.tag("new")) == (2.0, 3.0)
    share.wake("newer")
    assert share.tag("newer") <= 3.0


def test_a_flow_that_may_not_be_served_now_is_passed_over_and_keeps_its_place() -> None:
    share = FairShare({"first": 0, "second": 1, "third": 2})
    for flow in ("third", "second", "first"):
        share.wake(flow)
    assert share.next() == "first"
    assert share.next(without=("first",)) == "second"
    assert share.next(without=("first", "second", "third")) is None
    share.serve("second", 5.0, more=True)
    assert share.next() == "first"
    share.wake("new")
    assert share.tag("new") == 0.0, "who comes anew is not behind those who wait"


def test_weights_hold_from_when_they_are_set() -> None:
    share = FairShare()
    share.set_weights({"a": 1_000.0})
    for flow in ("a", "b"):
        share.wake(flow)
    for _ in range(2):
        turn = share.next()
        assert turn is not None
        share.serve(turn, 1.0, more=True)
    share.set_weights({"a": 1.0})
    order = []
    for _ in range(10):
        turn = share.next()
        assert turn is not None
        order.append(turn)
        share.serve(turn, 1.0, more=True)
    assert sorted(order) == ["a"] * 5 + ["b"] * 5


def test_debts_end_when_nobody_waits() -> None:
    share = FairShare()
    share.wake("a")
    share.serve("a", 1_000.0, more=False)
    share.rest()
    for flow in ("a", "b"):
        share.wake(flow)
    assert share.next() == "a"
    assert share.tag("a") == share.tag("b") == share.virtual


def test_what_is_remembered_is_bounded_however_many_come_and_go() -> None:
    share = FairShare()
    for number in range(5_000):
        share.wake(f"{number}")
        give(share, f"{number}", 1.0, more=False)
        share.wake("steady")
        if number % 3 == 0:
            give(share, "steady", 1.0, more=True)
        share.sleep("steady")
    assert len(share._after) < 500
    assert len(share._heap) < 500
