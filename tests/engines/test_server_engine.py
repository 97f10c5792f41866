"""daemon/engines/server: jobs through a speech server, before a stand-in with the bad habits of real ones."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmtts.daemon.engines import checks_of, load
from glmtts.daemon.engines.base import (
    Broken,
    Ended,
    EngineError,
    Event,
    Handle,
    Reference,
    SharedStepError,
    Spoken,
    Utterance,
)
from glmtts.daemon.engines.checks import Workplace
from glmtts.daemon.engines.cuda_errors import fatal_kind
from glmtts.daemon.engines.options import ServerOptions
from glmtts.daemon.engines.server import answer, openai
from glmtts.daemon.engines.server import engine as server_engine
from glmtts.daemon.engines.server.engine import ServerEngine
from glmtts.daemon.engines.server.process import ServerError, free_port

from ..support import speech_server
from ..support.speech_server import RATE, tone

DEADLINE_S = 20.0
STAND_IN = [sys.executable, "-S", speech_server.__file__, "{port}"]
SETTINGS: dict[str, Any] = {
    "api": "openai",
    "command": STAND_IN,
    "url": "http://127.0.0.1:{port}",
    "start_timeout_s": 10.0,
    "slots": 4,
    "voices": [],
    "ref_audio": False,
    "request_chars": 0,
    "model": "",
    "pcm_rate": 0,
    "extra": {},
    "api_key_file": "",
}
WARNINGS: list[str] = []


def started(*start: str, **settings: Any) -> ServerEngine:
    WARNINGS.clear()
    given = SETTINGS | {"command": [*STAND_IN, *start]} | settings
    engine = load("server", given, send_raw=lambda _: None, warmup_text="warm", warn=WARNINGS.append)
    assert isinstance(engine, ServerEngine)
    return engine


@contextlib.contextmanager
def starting(*start: str, **settings: Any) -> Iterator[ServerEngine]:
    engine = started(*start, **settings)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerEngine]:
    """One server for all tests that it survives."""
    with starting() as engine:
        yield engine


@pytest.fixture
def engine(shared: ServerEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerEngine]:
    monkeypatch.setattr(openai, "BUSY_S", 1.0)
    monkeypatch.setattr(openai, "_DEATH_S", 0.05)
    monkeypatch.setattr(answer, "_SECONDS", 0.5)
    yield shared
    assert not shared._jobs, "a job was left"


def begin(engine: ServerEngine, text: str, **given: Any) -> Handle:
    job = {"voice": "low", "reference": None, "sample_rate": RATE, "seed": 7, "options": ServerOptions(), "job": text}
    return engine.begin(Utterance(text=text, **(job | given)))


def turn(engine: ServerEngine, patience_s: float = DEADLINE_S) -> list[Event]:
    """Wait as the worker does, and take a step."""
    fd = engine.fileno()
    if engine.idle_s() is None and fd is not None:
        assert select.select([fd], [], [], patience_s)[0], "nothing came"
    return engine.advance()


def until(engine: ServerEngine, condition: Callable[[list[Event]], object]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + DEADLINE_S
    while not condition(events):
        assert time.monotonic() < deadline, events
        events += turn(engine)
    return events


def finish(engine: ServerEngine, *handles: Handle) -> dict[Handle, Event]:
    """Go on until each has its end; returns it."""

    def ends(events: list[Event]) -> dict[Handle, Event]:
        return {one.handle: one for one in events if not isinstance(one, Spoken)}

    return ends(until(engine, lambda events: set(handles) <= set(ends(events))))


def samples(engine: ServerEngine, text: str, **given: Any) -> np.ndarray:
    """All of a job's audio; the test fails if the job does."""
    handle = begin(engine, text, **given)
    events = until(engine, lambda events: events and not isinstance(events[-1], Spoken))
    assert isinstance(events[-1], Ended), events[-1]
    pieces = [one.piece for one in events if isinstance(one, Spoken) and one.handle is handle]
    assert [piece.ends_segment for piece in pieces].count(True) == 1 and pieces[-1].ends_segment
    return np.concatenate([piece.samples for piece in pieces])


def failure(engine: ServerEngine, text: str, **given: Any) -> EngineError:
    """The error of a job that fails alone."""
    handle = begin(engine, text, **given)
    end = finish(engine, handle)[handle]
    assert isinstance(end, Broken) and isinstance(end.error, EngineError), end
    return end.error


def expected(text: str) -> np.ndarray:
    return np.frombuffer(tone(text), "<i2").astype(np.float32) / 32_768


def state(engine: ServerEngine) -> dict[str, Any]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(engine._api.url.rpartition(":")[2]))) as asked:
        asked.request("GET", "/state")
        found: dict[str, Any] = json.loads(asked.getresponse().read())
        return found


# --- what a job gets


def test_a_job_is_the_servers_own_audio_and_says_what_it_wants(engine: ServerEngine) -> None:
    assert np.array_equal(samples(engine, "hello"), expected("hello"))
    assert state(engine)["bodies"][-1] == {
        "response_format": "wav",
        "stream_format": "audio",
        "seed": "7",
        "model": "tone-1",
        "voice": "low",
        "input": "hello",
    }
    assert engine.sample_rates == (RATE,) and [voice.name for voice in engine.voices] == ["low", "high"]


def test_jobs_are_spoken_side_by_side_and_each_hears_its_own(engine: ServerEngine) -> None:
    texts = [f"slowly {name * 20}" for name in "abcd"]
    began = time.monotonic()
    handles = {begin(engine, text): text for text in texts}
    heard: dict[Handle, list[np.ndarray]] = {handle: [] for handle in handles}
    events = until(engine, lambda events: sum(isinstance(one, Ended) for one in events) == 4)
    took = time.monotonic() - began
    for one in events:
        if isinstance(one, Spoken):
            heard[one.handle].append(one.piece.samples)
    assert state(engine)["most"] >= 4
    for handle, text in handles.items():
        alone = np.concatenate([expected(one) for one in text])
        assert np.array_equal(np.concatenate(heard[handle]), alone)
        assert handle.done > len(alone) and len(heard[handle]) > 5, "it did not come while it was made"
    # The time of the server is charged once, however many share it.
    assert took * 0.5 < sum(handle.work_s for handle in handles) <= took


def test_a_text_in_pieces_is_one_job_with_a_segment_for_each(engine: ServerEngine) -> None:
    coming = ["", "two", "", "", None]
    handle = begin(engine, "one", more=lambda: coming.pop(0))
    events = until(engine, lambda events: any(isinstance(one, Ended) for one in events))
    pieces = [one.piece for one in events if isinstance(one, Spoken)]
    assert isinstance(events[-1], Ended) and events[-1].handle is handle
    heard = np.concatenate([piece.samples for piece in pieces])
    assert np.array_equal(heard, np.concatenate([expected("one"), expected("two")]))
    assert [piece.segment for piece in pieces if piece.ends_segment] == [0, 1]
    assert [piece.waits for piece in pieces].count(True) == 3


def test_a_long_text_is_cut_into_requests_where_sentences_end() -> None:
    text = "One is here. Two is there. 三在这里。Four is elsewhere, and it is longer than any. Five."
    cut = ["One is here. Two is there.三在这里。", "Four is elsewhere, and it is longer than any.", "Five."]
    with starting(request_chars=32) as engine:
        handle = begin(engine, text)
        events = until(engine, lambda events: any(isinstance(one, Ended) for one in events))
        pieces = [one.piece for one in events if isinstance(one, Spoken)]
        assert [body["input"][:40] for body in state(engine)["bodies"]][-3:] == [one[:40] for one in cut]
        assert [(piece.segment, piece.segments) for piece in pieces if piece.ends_segment] == [(0, 3), (1, 3), (2, 3)]
        heard = np.concatenate([piece.samples for piece in pieces])
        assert np.array_equal(heard, np.concatenate([expected(one) for one in cut]))
        assert isinstance(events[-1], Ended) and events[-1].handle is handle


def test_a_job_that_is_suspended_between_two_requests_leaves_nothing_at_the_server() -> None:
    with starting(request_chars=20) as engine:
        handle = begin(engine, "The first one is here. The second one is there.")
        until(engine, lambda events: any(isinstance(one, Spoken) and one.piece.ends_segment for one in events))
        engine.suspend(handle)
        assert len(samples(engine, "urgent"))
        assert "The second one is there." not in state(engine)["tries"]
        engine.resume(handle)
        assert isinstance(finish(engine, handle)[handle], Ended)


def test_a_suspended_job_reads_no_more_and_resumes_where_it_was(engine: ServerEngine) -> None:
    handle = begin(engine, "endless 1" + "x" * 5_000)
    until(engine, lambda events: events)
    engine.suspend(handle)
    sent = 0

    def still() -> bool:
        # The buffers of the connection and of the request fill; then the server waits.
        nonlocal sent
        before, sent = sent, sum(state(engine)["sent"].values())
        return before == sent > 0

    deadline = time.monotonic() + DEADLINE_S
    while not still():
        assert time.monotonic() < deadline, "the server sends on"
        time.sleep(0.3)
    work_s = handle.work_s
    beside = begin(engine, "beside")
    events = until(engine, lambda events: any(isinstance(one, Ended) for one in events))
    assert {one.handle for one in events} == {beside} and handle.work_s == work_s
    engine.resume(handle)
    until(engine, lambda _: sum(state(engine)["sent"].values()) > sent + 2_000_000)
    engine.cancel(handle)


def test_a_job_that_is_cancelled_closes_its_connection(engine: ServerEngine) -> None:
    hung, going = begin(engine, "hang"), begin(engine, "endless 2" + "x" * 5_000)
    until(engine, lambda events: events and "hang" in {body["input"] for body in state(engine)["bodies"]})
    engine.cancel(hung)
    engine.cancel(going)
    deadline = time.monotonic() + DEADLINE_S
    while not {"hang", "endless 2"} <= {text.rstrip("x") for text in state(engine)["closed"]}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not [one for one in engine.advance() if one.handle in (hung, going)]


def test_a_recording_goes_to_a_server_that_takes_one() -> None:
    reference = Reference(np.full(16_000, 0.5, np.float32), 16_000, "what it says", "digest")
    with starting(ref_audio=True, extra={"task_type": "Base"}, model="m") as engine:
        assert engine.clones_voices and engine.voices == []
        assert state(engine)["bodies"][0]["ref_audio"], "it was warmed up with a voice that it may not have"
        with pytest.raises(EngineError, match="registered voice"):
            begin(engine, "hello", voice=None)
        options = ServerOptions(language="Chinese")
        assert len(samples(engine, "hello", voice=None, reference=reference, options=options))
        body = state(engine)["bodies"][-1]
        assert body["ref_audio"].startswith("data:audio/wav;base64,UklGR") and body["ref_text"] == "what it says"
        assert (body["task_type"], body["language"], body["model"]) == ("Base", "Chinese", "m") and "voice" not in body


# --- what goes wrong with one job


#: By text: the code of its error, and a part of the message.
BAD = {
    "json": ("synthesis_failed", "application/json in place of audio"),
    "refuse": ("bad_request", "it answered 400: can't say 'refuse'"),
    "fail": ("synthesis_failed", "it answered 500: failed at 'fail'"),
    "half": ("synthesis_failed", "less than its content-length"),
    "short": ("synthesis_failed", "the WAV header announces"),
    "torn": ("synthesis_failed", "broke in the middle of the audio"),
    "close": ("synthesis_failed", "broke before any audio came"),
    "mp3": ("synthesis_failed", "no WAV file"),
    "empty": ("synthesis_failed", "it has no audio"),
    "rate": ("synthesis_failed", "answered at 16000 Hz"),
    "endless": ("synthesis_failed", "more than 44 s of audio for 7 characters"),
    "continues": ("synthesis_failed", "goes on without audio"),
    "headers": ("synthesis_failed", "broke before any audio came"),
    "trickles": ("synthesis_failed", "goes on without audio"),
    "explains": ("synthesis_failed", "goes on without audio"),
    "trailers": ("synthesis_failed", "goes on without audio"),
    "full": ("unavailable", "the speech server was busy for 1 s"),
    # A client can't end the server with a word that the server repeats.
    "fail CUDA error: device-side assert": ("synthesis_failed", "it answered 500"),
}


def test_a_bad_answer_fails_its_job_alone_with_a_reason(engine: ServerEngine) -> None:
    other = begin(engine, "slowly spoken beside them")
    jobs = {begin(engine, text): text for text in BAD}
    ends = finish(engine, other, *jobs)
    assert isinstance(ends.pop(other), Ended)
    for job, end in ends.items():
        assert isinstance(end, Broken) and isinstance(end.error, EngineError), end
        error, (code, words) = end.error, BAD[jobs[job]]
        assert error.code == code and words in error.message and not error.fatal
        if repr(jobs[job]) in error.message:
            assert error.quotes, "the log would quote the text"


def test_a_busy_server_is_asked_again_and_the_others_go_on(engine: ServerEngine) -> None:
    handle = begin(engine, "busy")
    assert np.array_equal(samples(engine, "hello"), expected("hello"))
    assert isinstance(finish(engine, handle)[handle], Ended)
    assert state(engine)["tries"]["busy"] == 3 and handle.done > 3


# --- what goes wrong with the server


def broken(engine: ServerEngine, *texts: str) -> SharedStepError:
    for text in texts:
        begin(engine, text)
    with pytest.raises(SharedStepError) as raised:
        until(engine, lambda _: False)
    assert isinstance(raised.value.__cause__, ServerError)
    return raised.value


def test_a_server_that_fails_all_ends_the_worker_and_no_job_is_failed() -> None:
    with starting() as engine:
        error = broken(engine, "break", "hang")
        assert error.jobs == ["break", "hang"] and "the warm-up sentence too" in str(error)
        # So does the next worker, of which the server is not the child.
        with pytest.raises(ServerError, match="GET /health answers 503"):
            started(command=[], url=engine._api.url, start_timeout_s=0.1)


def test_a_broken_cuda_context_in_the_server_ends_the_worker_with_its_jobs_as_suspects() -> None:
    with starting() as engine:
        error = broken(engine, "hang", "cuda")
        assert error.jobs == ["hang", "cuda"] and fatal_kind(error) == "cuda_context"
        assert "at 'cuda'" not in str(error), "the log would quote the text"


def test_a_server_that_dies_ends_the_worker_also_when_it_is_idle() -> None:
    with starting() as engine:
        error = broken(engine, "hang", "die")
        assert error.jobs == ["hang", "die"] and "killed by SIGKILL" in str(error)
    with starting() as engine:
        assert engine._child is not None
        os.kill(engine._child.pid, signal.SIGKILL)
        assert broken(engine).jobs == []


# --- its start and its end


def test_a_server_that_is_slow_or_loads_is_waited_for() -> None:
    for start in ("slow", "loads", "no-health"):
        with starting(start) as engine:
            assert np.array_equal(samples(engine, "hello", voice=None), expected("hello"))
    assert [voice.name for voice in engine.voices] == [] and engine.version == "openai" and "no voices" in WARNINGS[0]


@pytest.mark.parametrize(
    ("start", "settings", "words"),
    [
        ("print", {}, "exited with status 3; it printed last: loading the model | Traceback: | OSError: the weights"),
        ("never", {"start_timeout_s": 0.3}, "engine.server.start_timeout_s, and workers.start_timeout_s above it"),
        ("key", {"start_timeout_s": 0.5}, "the warm-up sentence failed: the speech server failed; it answered 401"),
        ("", {"command": ["/nonexistent/server", "{port}"]}, "/nonexistent/server can't be started"),
    ],
)
def test_a_server_that_does_not_start_says_why(start: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ServerError) as raised:
        started(start, **settings)
    assert words in str(raised.value)


def test_a_port_of_another_program_is_refused_before_that_one_speaks_for_us() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(ServerError, match="another program listens at port"):
            started(url=f"http://127.0.0.1:{port}", command=[*STAND_IN[:-1], str(port)])


def test_a_port_that_is_taken_before_the_server_listens_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One listens; the other is as a connection that got this port for its own end.
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as connected:
        connected.bind(("127.0.0.1", 0))
        taken = [one.getsockname()[1] for one in (listening, connected)]
        monkeypatch.setattr(server_engine, "free_port", lambda: taken.pop(0) if taken else free_port())
        with starting() as engine:
            assert np.array_equal(samples(engine, "hello"), expected("hello"))
        assert not taken and "another program listens" in WARNINGS[0] and "Address already in use" in WARNINGS[1]
        taken = [listening.getsockname()[1]] * 3
        with pytest.raises(ServerError, match="another program listens"):
            started()
        assert not taken


def test_two_servers_that_start_at_once_have_a_port_each(monkeypatch: pytest.MonkeyPatch) -> None:
    same = free_port()
    first = [same, same]
    monkeypatch.setattr(server_engine, "free_port", lambda: first.pop() if first else free_port())
    with ThreadPoolExecutor(2) as threads:
        engines = [one.result() for one in [threads.submit(started) for _ in range(2)]]
    try:
        assert [state(one)["tries"] for one in engines] == [{"warm": 1}] * 2
    finally:
        for one in engines:
            one.close()


def test_a_server_that_runs_already_is_spoken_through_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("open sesame\n")
    file = str(tmp_path / "key")
    with starting("key", api_key_file=file) as ours:
        with starting(url=f"{ours._api.url}/v1", command=[], api_key_file=file) as guest:
            assert np.array_equal(samples(guest, "hello"), expected("hello"))
        assert np.array_equal(samples(ours, "hello"), expected("hello"))


def test_raw_samples_have_the_rate_of_the_configuration() -> None:
    with starting(pcm_rate=RATE) as engine:
        assert np.array_equal(samples(engine, "hello"), expected("hello"))
        assert "audio/mpeg in place of raw samples" in failure(engine, "mp3").message


def test_a_server_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    from glmtts.daemon.engines.server import process

    monkeypatch.setattr(process, "_END_S", 0.2)
    engine = started("deaf")
    engine.close()
    assert engine._child is not None and engine._child.ended.wait(DEADLINE_S)


def test_its_output_reaches_the_log_at_debug_level_alone_once_it_gets_texts(capfd: pytest.CaptureFixture[str]) -> None:
    with starting() as engine:
        samples(engine, "flood secret")
        samples(engine, "print secret")
        deadline, seen = time.monotonic() + DEADLINE_S, ""
        while "speaking print secret" not in seen:
            assert time.monotonic() < deadline
            seen += capfd.readouterr().out
            time.sleep(0.01)
    lines = seen.splitlines()
    assert "<6>server: listening" in lines
    assert all(line.startswith("<7>server: ") for line in lines if "secret" in line)


# --- the doctor


def test_the_doctor_sees_whether_a_server_can_be_started_or_reached() -> None:
    def findings(**settings: Any) -> list[tuple[str, str]]:
        place = Workplace(sys.executable, SETTINGS | settings, False)
        checks = checks_of("server")
        return [(one.state, one.seen) for one in [*checks.files(place), *checks.installed(place)]]

    assert findings() == [("ok", f"{sys.executable}, at http://127.0.0.1:{{port}}")]
    ((state, seen),) = findings(command=["/nonexistent", "{port}"])
    assert state == "wrong" and "engine.server.command" in seen
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert findings(command=[], url=url) == [("ok", f"{url} listens")]
    ((state, seen),) = findings(command=[], url=url)
    assert state == "wrong" and "Connection refused" in seen
    assert findings(command=[], url="http://speech.invalid")[0] == ("warning", "http://speech.invalid")
