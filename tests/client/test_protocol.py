"""The pure part of the clients: what they ask, what they make of answers, and what a broken connection does to it."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.client import (
    BadRequest,
    ConnectionLost,
    DaemonNotRunning,
    GlmttsError,
    ProtocolError,
    QueueFull,
    RequestFailed,
    SlowConsumer,
    TooLarge,
    errors,
)
from glmtts.client.exchange import MAX_UNREAD_BYTES, Exchange
from glmtts.client.protocol import MAX_BODY_BYTES, MAX_HEADER_BYTES, Core
from glmtts.daemon.core.settings import LimitsSettings
from glmtts.protocol import codec, events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Synthesize

from .scripted_daemon import accepted, audio, done

GRACE_S = 30.0


def connected_core() -> Core:
    core = Core("ipc:///run/x.sock", 0.0, reconnect_s=GRACE_S)
    core.connection_made()
    return core


def sent(core: Core) -> list[dict[str, Any]]:
    """Send what is to be sent, as a shell does, and read it as the daemon would."""
    requests = []
    while core.connected and core.outgoing:
        requests.append(msgpack.unpackb(core.outgoing[0].frames[0]))
        core.message_sent()
    return requests


def tell(core: Core, event: events.ServerEvent, *body: bytes) -> None:
    core.receive([codec.encode(event), *body])


def test_the_daemon_reads_every_key_of_a_speech_request() -> None:
    core = connected_core()
    core.synthesize(
        "你好",
        recording=b"RIFF",
        prompt_text="再见",
        format="flac",
        sample_rate=16_000,
        output="a.flac",
        priority="batch",
        deadline_s=5,
        durable=True,
        key="k",
        seed=7,
        options={"speed": 1.5},
        on_behalf_of="eve",
    )
    request = codec.decode_request(core.outgoing[0].frames, codec.CodecLimits())
    assert isinstance(request, Synthesize)
    assert (request.text, request.prompt.text, request.seed, request.key) == ("你好", "再见", 7, "k")  # type: ignore[union-attr]
    assert core.outgoing[0].frames[1] == b"RIFF"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"text": "a\ud800b"}, r"text: U\+D800 at position 1"),
        ({"text": "a", "voice": "\udfff"}, "voice: "),
        ({"text": "a", "seed": 2**70}, "seed: "),
        ({"text": "a", "options": {"x": object()}}, "options: "),
        ({"text": "a", "options": {"x": "\ud800"}}, "options: "),
    ],
)
def test_what_can_not_be_sent_is_refused_by_the_name_of_its_key(keys: dict[str, Any], named: str) -> None:
    core = connected_core()
    with pytest.raises(BadRequest, match=named):
        core.synthesize(**keys)
    assert not core.in_flight()


def test_every_error_code_has_its_class_and_an_unknown_one_is_still_an_error() -> None:
    for code in ErrorCode:
        failure = errors.failure_of(events.Error.of("r1", code, "words", job="j1", retry_after_s=2.0))
        assert type(failure) is not RequestFailed
        assert (failure.code, failure.message, failure.job, failure.retry_after_s) == (code.value, "words", "j1", 2.0)
        assert failure.retryable is code.retryable
        assert type(failure)("x").retryable is code.retryable
    newer = errors.failure_of(events.Error(id="r1", code="sunspots", message="m", retryable=True))
    assert type(newer) is RequestFailed
    assert newer.retryable


def test_a_refused_job_ends_with_the_daemons_words() -> None:
    core = connected_core()
    exchange = core.synthesize("a")
    sent(core)
    tell(core, events.Error.of("r1", ErrorCode.QUEUE_FULL, "10 are waiting", retry_after_s=3.5))
    with pytest.raises(QueueFull, match="10 are waiting") as caught:
        exchange.speech()
    assert caught.value.retry_after_s == 3.5
    tell(core, done("j1", "r1"), b"late")
    assert exchange.failure is caught.value


def test_a_request_too_large_to_have_its_id_read_is_answered_all_the_same() -> None:
    core = connected_core()
    other = core.call("ping")
    huge = core.synthesize("字" * 30_000)
    sent(core)
    tell(core, events.Error.of("", ErrorCode.TOO_LARGE, "header: 90000 bytes"))
    assert not other.finished
    with pytest.raises(TooLarge):
        huge.speech()


def test_a_request_that_no_daemon_takes_is_not_sent() -> None:
    core = connected_core()
    with pytest.raises(TooLarge, match="text: the request has"):
        core.synthesize("a" * MAX_HEADER_BYTES)
    with pytest.raises(TooLarge, match="body: "):
        core.call("voice_add", bytes(MAX_BODY_BYTES + 1), name="v")
    assert not core.outgoing
    # The most that a configuration can set.
    limits = {field.name: repr(field.type) for field in msgspec.structs.fields(LimitsSettings)}
    assert f"le={MAX_HEADER_BYTES >> 10})" in limits["header_kib"]
    assert f"le={MAX_BODY_BYTES >> 20})" in limits["body_mib"]


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("body_mib", [4, 16])
def test_a_body_over_which_the_daemon_closed_the_connection_is_not_sent_again(key: str | None, body_mib: int) -> None:
    core = connected_core()
    recording = bytes(10 << 20)
    huge = core.synthesize("a", recording=recording, prompt_text="x", key=key)
    other = core.synthesize("b", key="other")
    sent(core)
    core.connection_broke(1.0)
    assert not huge.finished
    core.connection_made()
    assert [request["op"] for request in sent(core)] == ["synthesize", "info"]
    limits = {"body_bytes": body_mib << 20}
    tell(core, events.InfoAnswer(
        id="r3", version="1", protocol=1, engine="e", sample_rate=24_000, sample_rates=[], formats=[], voices=[],
        default_voice="", clones_voices=True, limits=limits, options={}, ready=True,
    ))  # fmt: skip
    assert not other.finished
    if body_mib == 4:
        assert not core.outgoing
        with pytest.raises(TooLarge, match=f"body: {10 << 20} bytes; at most {4 << 20} are accepted"):
            huge.speech()
    elif key:
        assert core.outgoing[0].frames[1] == recording
    else:
        with pytest.raises(ConnectionLost, match="may or may not have begun"):
            huge.speech()


def test_a_chunk_that_is_missing_is_never_passed_over() -> None:
    core = connected_core()
    exchange = core.synthesize("a", stream=True)
    sent(core)
    tell(core, accepted("j1", "r1"))
    tell(core, audio("j1", "r1", 0), b"00")
    tell(core, audio("j1", "r1", 2), b"22")
    with pytest.raises(ProtocolError, match="chunk 1"):
        exchange.check()
    assert [request["op"] for request in sent(core)] == ["cancel"]


def test_a_stream_with_its_end_cut_off_is_no_success() -> None:
    core = connected_core()
    exchange = core.synthesize("a", stream=True)
    tell(core, audio("j1", "r1", 0), b"00")
    tell(core, done("j1", "r1", chunks=2))
    with pytest.raises(ProtocolError, match="2 chunks, of which 1"):
        exchange.check()


def test_audio_of_another_job_is_never_handed_out() -> None:
    core = connected_core()
    exchange = core.synthesize("a", stream=True)
    tell(core, accepted("j1", "r1"))
    tell(core, audio("j2", "r1", 0), b"somebody else's")
    assert not exchange.chunks
    with pytest.raises(ProtocolError, match="mixed up"):
        exchange.check()


def test_a_stream_that_nobody_reads_is_given_up_before_it_fills_the_memory() -> None:
    core = connected_core()
    exchange = core.synthesize("a", stream=True)
    sent(core)
    tell(core, accepted("j1", "r1"))
    block = bytes(MAX_UNREAD_BYTES // 8)
    for seq in range(10):
        tell(core, audio("j1", "r1", seq), block)
    assert exchange.unread_bytes <= MAX_UNREAD_BYTES + len(block)
    with pytest.raises(SlowConsumer):
        exchange.check()
    assert [(request["op"], request["job"]) for request in sent(core)] == [("cancel", "j1")]


def test_a_job_given_up_before_it_had_a_name_is_cancelled_when_it_gets_one() -> None:
    core = connected_core()
    exchange = core.synthesize("a")
    sent(core)
    core.abandon(exchange, GlmttsError("no patience"))
    assert sent(core) == []
    tell(core, accepted("j1", "r1"))
    assert [(request["op"], request["job"]) for request in sent(core)] == [("cancel", "j1")]


def test_a_wait_that_is_given_up_is_left_under_its_latest_name() -> None:
    core = connected_core()
    plain, follower = core.wait("j1", "anna", track=False), core.wait("j2", track=False, follow=True)
    sent(core)
    core.abandon(plain, GlmttsError("gone"))
    assert [(r["op"], r["job"], r["request"]) for r in sent(core)] == [("leave", "j1", "r1")]
    tell(core, audio("j2", follower.ids[0], 0), b"a")
    core.connection_broke(1.0)
    core.connection_made()
    (again,) = sent(core)
    core.abandon(follower, GlmttsError("gone"))
    assert [(r["op"], r["job"], r["request"]) for r in sent(core)] == [("leave", "j2", again["id"])]
    ended = core.wait("j3", track=False)
    sent(core)
    tell(core, done("j3", ended.ids[0]), b"RIFF")
    assert sent(core) == []


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("options", "ops"),
    [({}, ["cancel"]), ({"durable": False}, ["cancel"]), ({"durable": True}, ["leave"]), ({"key": "k"}, ["leave"])],
)
def test_a_stream_that_is_given_up_is_cancelled_unless_it_is_durable_or_has_a_key(
    named: bool, options: dict[str, Any], ops: list[str]
) -> None:
    core = connected_core()
    stream = core.synthesize("a", stream=True, **options)
    sent(core)
    if named:
        tell(core, accepted("j1", "r1"))
    core.abandon(stream, GlmttsError("gone"))
    if not named:
        assert core.awaits_name and core.owes_cancel == (ops == ["cancel"])
        tell(core, accepted("j1", "r1"))
    assert [request["op"] for request in sent(core)] == ops and not core.awaits_name


def test_a_job_that_another_request_may_share_is_not_cancelled_over_a_bad_answer() -> None:
    core = connected_core()
    core.synthesize("a", key="k")
    sent(core)
    tell(core, accepted("j1", "r1"))
    tell(core, accepted("j2", "r1"))
    assert [request["op"] for request in sent(core)] == ["leave"]


def test_a_request_given_up_before_it_left_is_never_sent() -> None:
    core = Core("ipc:///run/x.sock", 0.0)
    core.abandon(core.synthesize("a"), GlmttsError("no patience"))
    core.connection_made()
    assert sent(core) == []


def test_jobs_in_flight_are_asked_for_again_after_a_reconnection() -> None:
    core = connected_core()
    first, second = core.synthesize("a"), core.synthesize("b")
    sent(core)
    tell(core, accepted("j1", "r1"))
    tell(core, accepted("j2", "r2"))
    core.connection_broke(1.0)
    core.connection_made()
    waits = sent(core)
    assert [(request["op"], request["job"]) for request in waits] == [("wait", "j1"), ("wait", "j2")]
    tell(core, done("j2", waits[1]["id"], b"B"), b"B")
    tell(core, events.Error.of(waits[0]["id"], ErrorCode.JOB_NOT_FOUND, "no such job"))
    assert second.speech().audio == b"B"
    with pytest.raises(ConnectionLost, match="j1") as caught:
        first.speech()
    assert caught.value.job == "j1"


def test_an_unaccepted_request_is_sent_again_with_a_key_and_lost_without() -> None:
    core = connected_core()
    keyed, bare = core.synthesize("a", key="k"), core.synthesize("b")
    sent(core)
    late = core.synthesize("c")
    core.connection_broke(1.0)
    with pytest.raises(ConnectionLost):
        bare.speech()
    core.connection_made()
    assert sorted(request["text"] for request in sent(core)) == ["a", "c"]
    assert not keyed.finished
    assert not late.finished


def test_a_request_that_ends_the_daemon_every_time_is_not_sent_for_ever() -> None:
    core = connected_core()
    keyed = core.synthesize("a", key="k")
    for now in range(10):
        sent(core)
        core.connection_broke(float(now))
        core.connection_made()
    with pytest.raises(ConnectionLost, match="4 times"):
        keyed.speech()


def test_an_operation_that_changes_the_daemon_is_not_repeated_behind_the_operators_back() -> None:
    core = connected_core()
    status, recycle = core.call("status"), core.call("recycle", worker="all")
    sent(core)
    core.connection_broke(1.0)
    assert not status.finished
    with pytest.raises(ConnectionLost, match="recycle"):
        recycle.check()


@pytest.mark.parametrize("was_there", [True, False])
def test_hope_for_the_daemon_ends_after_the_grace(was_there: bool) -> None:
    core = Core("ipc:///run/x.sock", 0.0, reconnect_s=GRACE_S)
    exchange = core.call("ping")
    if was_there:
        core.connection_made()
        sent(core)
        core.connection_broke(0.0)
    core.tick(GRACE_S - 0.1)
    assert not exchange.finished
    core.tick(GRACE_S)
    with pytest.raises(ConnectionLost if was_there else DaemonNotRunning):
        exchange.check()
    assert core.gave_up


def test_an_event_of_a_later_version_is_ignored() -> None:
    core = connected_core()
    exchange = core.synthesize("a")
    core.receive([msgpack.packb({"v": 1, "event": "mood", "id": "r1", "mood": "fine"})])
    core.receive(
        [msgpack.packb({"v": 1, "event": "accepted", "id": "r1", "job": "j", "position": 0, "queue_size": 0, "x": 1})]
    )
    tell(core, done("j", "r1", b"A"), b"A")
    assert exchange.speech().audio == b"A"


def test_a_damaged_answer_ends_its_request_instead_of_leaving_it_waiting() -> None:
    core = connected_core()
    exchange = core.call("ping")
    core.receive([msgpack.packb({"v": 1, "event": "pong", "id": "r1", "uptime_s": "long"})])
    with pytest.raises(ProtocolError):
        exchange.check()


IDS = st.sampled_from(["r1", "r2", "r3", "r4", "r5", "r6", ""])
JOBS = st.sampled_from(["j1", "j2", "j3"])
COUNTS = st.integers(0, 3)
EVENTS: st.SearchStrategy[events.ServerEvent] = st.one_of(
    st.builds(events.Accepted, id=IDS, job=JOBS, position=COUNTS, queue_size=COUNTS),
    st.builds(events.Queued, id=IDS, job=JOBS, position=COUNTS, queue_size=COUNTS),
    st.builds(lambda id, job: events.Started(id=id, job=job, worker="w", gpu=None, attempt=1, waited_s=0.0), IDS, JOBS),
    st.builds(events.Progress, id=IDS, job=JOBS, segment=COUNTS, segments=COUNTS, audio_s=st.just(0.0)),
    st.builds(audio, JOBS, IDS, COUNTS),
    st.builds(lambda job, id, chunks: done(job, id, chunks=chunks), JOBS, IDS, COUNTS),
    st.builds(
        lambda id, code, job, retry: events.Error(id=id, code=code, message="m", retryable=retry, job=job),
        IDS, st.sampled_from([*ErrorCode.__members__.values(), "newer"]), JOBS, st.booleans(),
    ),
    st.builds(events.Pong, id=IDS, version=st.just("0"), protocol=st.just(1), uptime_s=st.just(0.0)),
    st.builds(events.Result, id=IDS, values=st.just({"state": "waiting"})),
)  # fmt: skip
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5) | IDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["v", "id", "event", "job", "seq", "code"]) | st.binary(max_size=2), inner)
    ),
    max_leaves=8,
)
HEADERS = (
    EVENTS.map(codec.encode)
    | st.binary(max_size=40)
    | JSONISH.map(lambda value: msgpack.packb(value, use_bin_type=True))
    | st.builds(
        lambda name, id, rest: msgpack.packb({"event": name, "id": id, "v": 1, "rest": rest}),
        st.sampled_from(["accepted", "done", "error", "pong", "result", "mood"]),
        IDS | JSONISH,
        JSONISH,
    )
)
ASK = st.sampled_from(["speak", "speak with key", "stream", "ping", "wait", "recycle"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), ASK),
        st.tuples(st.just("receive"), st.lists(HEADERS | st.binary(max_size=20), max_size=3)),
        st.tuples(st.sampled_from(["send", "made", "broke", "tick", "abandon"]), st.integers(0, 40)),
    ),
    max_size=40,
)


def ask(core: Core, what: str) -> Exchange:
    if what == "wait":
        return core.wait("j1")
    if what.startswith("s"):
        return core.synthesize("a", stream=what == "stream", key="k" if what.endswith("key") else None)
    return core.call(what, worker="all" if what == "recycle" else None)


@given(STEPS)
def test_whatever_arrives_in_whatever_order_every_request_ends_at_most_once_and_in_a_named_way(
    steps: list[tuple[str, Any]],
) -> None:
    core = Core("ipc:///run/x.sock", 0.0, reconnect_s=GRACE_S)
    asked: list[Exchange] = []
    ends: dict[int, tuple[Any, Any]] = {}
    now = 0.0
    for step, argument in steps:
        match step:
            case "ask":
                asked.append(ask(core, argument))
            case "receive":
                core.receive(argument)
            case "send":
                sent(core)
            case "made":
                core.connection_made()
            case "broke":
                core.connection_broke(now)
            case "abandon" if asked:
                core.abandon(asked[argument % len(asked)], GlmttsError("given up"))
            case "tick":
                now += argument
                core.tick(now)
        in_flight = set(map(id, core.in_flight()))
        for exchange in asked:
            end = (exchange.answer, exchange.failure)
            assert (id(exchange) in in_flight) is not exchange.finished
            assert exchange.finished is (end != (None, None))
            if exchange.finished:
                assert ends.setdefault(id(exchange), end) == end
                assert exchange.failure is None or isinstance(exchange.failure, GlmttsError)
    core.connection_broke(now)
    core.try_again(now)
    core.tick(now + GRACE_S)
    assert all(exchange.finished for exchange in asked)


def test_what_a_gateway_waits_for_on_behalf_of_a_customer_is_no_answer_to_another() -> None:
    core = connected_core()
    of_anna = core.wait("j1", "anna")
    assert core.tracked("j1", "anna") is of_anna
    assert core.tracked("j1", "ben") is None and core.tracked("j1") is None
    sent(core)
    core.connection_broke(1.0)
    core.connection_made()
    # The daemon has to see whose request it is when the connection is back, too.
    assert sent(core)[-1]["on_behalf_of"] == "anna"
    core.collect(of_anna)
    assert core.tracked("j1", "anna") is None


def test_who_follows_a_job_gets_its_pieces_or_the_whole_file_and_goes_on_after_a_broken_connection() -> None:
    core = connected_core()
    whole, pieces = core.wait("j1", "anna", track=False, follow=True), core.wait("j2", track=False, follow=True)
    assert [request["follow"] for request in sent(core)] == [True, True]
    tell(core, done("j1", whole.ids[0]), b"RIFF")
    assert whole.take_chunk().samples == b"RIFF" and whole.speech().audio == b""
    tell(core, audio("j2", pieces.ids[0], 0), b"a")
    core.connection_broke(1.0)
    core.connection_made()
    (again,) = sent(core)
    assert again["follow"] and again["job"] == "j2"
    # The daemon begins anew; what is known already comes once.
    for seq, body in enumerate((b"a", b"b")):
        tell(core, audio("j2", again["id"], seq), body)
    assert [pieces.take_chunk().samples for _ in range(2)] == [b"a", b"b"]
    # A file that was made once more may not fit the part that was heard.
    tell(core, done("j2", again["id"]), b"RIFF")
    with pytest.raises(ConnectionLost):
        pieces.check()
