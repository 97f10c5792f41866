"""The sync client against a scripted daemon on a real socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtts.client import (
    FLUSH,
    BadRequest,
    Cancelled,
    Client,
    ConnectionLost,
    Control,
    DaemonNotRunning,
    GlmttsError,
    JobEvent,
    JobNotFound,
    Timeout,
    TooLarge,
    connection,
)
from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel, Request, Synthesize, Wait

from .scripted_daemon import ScriptedDaemon, accept_only, accepted, audio, done, speak_at_once

PATIENCE_S = 10.0


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint, timeout=PATIENCE_S) as client:
        yield client


def test_importing_the_client_loads_neither_asyncio_nor_what_draws_nor_what_computes() -> None:
    program = (
        "import sys; from glmtts.client import Client; "
        "print(*{'asyncio', 'rich', 'click', 'numpy', 'glmtts.daemon'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout.strip() == ""


def test_speaking_returns_the_audio_and_shows_the_events_before_it(client: Client, daemon: ScriptedDaemon) -> None:
    seen: list[Any] = []
    speech = client.speak("hello", on_event=seen.append, voice="zh", seed=3)
    assert speech.audio == b"hello"
    assert [type(event).__name__ for event in seen] == ["Accepted", "Started"]
    request = daemon.next_of(Synthesize)
    assert (request.voice, request.seed) == ("zh", 3)


@pytest.mark.parametrize("kind", ["a file", "a device"])
def test_a_recording_that_no_daemon_accepts_is_not_read_whole(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(connection, "MAX_BODY_BYTES", 1 << 20)
    path = Path("/dev/zero") if kind == "a device" else tmp_path / "large.wav"
    if kind == "a file":
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(TooLarge, match="1 MiB that any daemon accepts"):
        client.speak("hi", prompt=path, prompt_text="x")
    with pytest.raises(TooLarge, match=path.name):
        client.add_voice("me", path, text="x", consent=True)


def test_a_prompt_may_be_a_path_or_bytes(client: Client, tmp_path: Path) -> None:
    (tmp_path / "me.wav").write_bytes(b"RIFF")
    for prompt in (tmp_path / "me.wav", str(tmp_path / "me.wav"), b"RIFF"):
        assert client.speak("hi", prompt=prompt, prompt_text="x").audio == b"RIFFhi"
    with pytest.raises(FileNotFoundError):
        client.speak("hi", prompt=tmp_path / "you.wav", prompt_text="x")


def test_a_misspelt_option_is_told_at_once(client: Client) -> None:
    with pytest.raises(TypeError, match="voic"):
        client.speak("hi", voic="zh")  # type: ignore[call-arg]


def test_half_a_character_is_refused_here_and_the_client_goes_on(client: Client) -> None:
    with pytest.raises(BadRequest, match="text"):
        client.speak("\ud83d")
    assert client.speak("hi").audio == b"hi"


def test_chunks_come_in_order_and_then_the_done_event(client: Client) -> None:
    with client.stream("今天天气") as stream:
        assert stream.job.id == "j1"
        chunks = list(stream)
    assert "".join(chunk.samples.decode("utf-16-le") for chunk in chunks) == "今天天气"
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert stream.done is not None and stream.done.chunks == 4


def stream_without_end(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
    if isinstance(request, Synthesize):
        daemon.send(peer, accepted("j1", request.id))
        daemon.send(peer, audio("j1", request.id, 0), b"0011")
    else:
        speak_at_once(daemon, peer, request, body)


def test_a_stream_left_by_break_is_cancelled(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.script = stream_without_end
    for _ in client.stream("long"):
        break
    assert daemon.next_of(Cancel).job == "j1"


def test_the_cancel_goes_out_even_if_the_client_closes_at_once(daemon: ScriptedDaemon) -> None:
    daemon.script = stream_without_end
    with Client(daemon.endpoint, timeout=PATIENCE_S) as client, client.stream("long"):
        pass
    assert daemon.next_of(Cancel).job == "j1"


def test_a_stream_that_nobody_reads_stays_with_the_daemon(client: Client, daemon: ScriptedDaemon) -> None:
    many = 2_000

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
        if not isinstance(request, Synthesize):
            speak_at_once(daemon, peer, request, body)
            return
        daemon.send(peer, accepted("j1", request.id))
        for seq in range(many):
            daemon.send(peer, audio("j1", request.id, seq), bytes(9_600))

    daemon.script = script
    stream = client.stream("long")
    next(stream)
    assert len(stream._exchange.chunks) < 100
    stream.close()
    assert daemon.next_of(Cancel)


def test_jobs_in_flight_are_collected_in_any_order(client: Client, daemon: ScriptedDaemon) -> None:
    pending: list[Any] = []

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _: bytes) -> None:
        job = daemon.new_job()
        daemon.send(peer, accepted(job, request.id, position=len(pending)))
        pending.append((peer, request, job))
        if len(pending) == 3:
            for owner, asked, its_job in reversed(pending):
                daemon.send(owner, done(its_job, asked.id), asked.text.encode())

    daemon.script = script
    jobs = [client.submit(text) for text in ("a", "b", "c")]
    assert [job.position for job in jobs] == [0, 1, 2]
    assert client.wait(jobs[1]).audio == b"b"
    assert client.wait(jobs[2].id).audio == b"c"
    assert client.wait(jobs[0]).audio == b"a"
    assert client.wait(jobs[0]).audio == b"a"
    assert {entry[1].__struct_config__.tag for entry in daemon.requests.queue} == {"synthesize"}


def test_a_job_of_an_earlier_connection_can_be_waited_for(client: Client, daemon: ScriptedDaemon) -> None:
    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _: bytes) -> None:
        if isinstance(request, Wait) and request.job == "j7":
            daemon.send(peer, done("j7", request.id), b"kept")
        else:
            daemon.send(peer, events.Error.of(request.id, ErrorCode.JOB_NOT_FOUND, "no such job"))

    daemon.script = script
    assert client.wait("j7").audio == b"kept"
    with pytest.raises(JobNotFound):
        client.wait("j8")


def test_a_job_that_takes_too_long_is_cancelled(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    with pytest.raises(Timeout) as caught:
        client.speak("long", timeout=0.1)
    assert caught.value.job == "j1"
    assert daemon.next_of(Cancel).job == "j1"


def test_waiting_too_long_leaves_a_submitted_job_alone(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    job = client.submit("long")
    with pytest.raises(Timeout):
        client.wait(job, timeout=0.1)
    peer, request, _ = daemon.next()
    daemon.send(peer, done(job.id, request.id), b"late")
    assert client.wait(job).audio == b"late"
    assert daemon.requests.empty()


def test_control_c_cancels_the_job(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    program = "from glmtts.client import Client\nwith Client() as client:\n    client.speak('long')\n"
    env = {**os.environ, "GLMTTS_ENDPOINT": daemon.endpoint}
    with subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE) as child:
        daemon.next_of(Synthesize)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert b"KeyboardInterrupt" in stderr
    assert daemon.next_of(Cancel).job == "j1"


def test_a_callback_that_raises_cancels_the_job_and_is_heard(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only

    def on_event(event: JobEvent) -> None:
        raise ValueError(event.job)

    with pytest.raises(ValueError, match="j1"):
        client.speak("long", on_event=on_event)
    assert daemon.next_of(Cancel).job == "j1"


def test_cancelling_from_a_callback_ends_the_job(client: Client, daemon: ScriptedDaemon) -> None:
    asked: dict[str, Any] = {}

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
        if isinstance(request, Synthesize):
            asked["id"] = request.id
            daemon.send(peer, accepted("j1", request.id))
        else:
            daemon.send(peer, events.Error.of(asked["id"], ErrorCode.CANCELLED, "as you wish", job="j1"))
            speak_at_once(daemon, peer, request, body)

    daemon.script = script
    with pytest.raises(Cancelled, match="as you wish"):
        client.speak("long", on_event=lambda event: client.cancel(event.job))


def test_the_small_questions_have_typed_answers(client: Client) -> None:
    assert client.ping().protocol == 1
    assert [voice.name for voice in client.voices()] == ["zh"]
    assert client.jobs(state="done", limit=5) == []
    assert client.cancel("j1") == "cancelled"


def test_a_daemon_that_is_not_there_is_named_at_once_with_what_to_do(no_daemon: str, tmp_path: Path) -> None:
    for endpoint in (no_daemon, f"ipc://{tmp_path}/never.sock", "tcp://127.0.0.1:1"):
        with pytest.raises(DaemonNotRunning, match="glmttsd"):
            Client(endpoint)
    (tmp_path / "file").write_text("")
    with pytest.raises(DaemonNotRunning, match=r"no socket|Connection refused"):
        Client(f"ipc://{tmp_path}/file")


def test_an_endpoint_that_is_none_is_an_error_of_ours(tmp_path: Path) -> None:
    for endpoint in ("nonsense", "tcp://127.0.0.1", f"ipc://{tmp_path}/{'x' * 120}"):
        with pytest.raises(GlmttsError):
            Client(endpoint)


def test_a_job_goes_on_over_a_restart_of_the_daemon(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    job = client.submit("long")
    daemon.stop()

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _: bytes) -> None:
        assert isinstance(request, Wait)
        daemon.send(peer, done(request.job, request.id), b"survived")

    daemon.script = script
    daemon.start()
    assert client.wait(job).audio == b"survived"


def test_a_daemon_that_does_not_come_back_is_not_waited_for_for_ever(daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    with Client(daemon.endpoint, timeout=PATIENCE_S, reconnect_s=0.3) as client:
        job = client.submit("long")
        daemon.stop()
        with pytest.raises(ConnectionLost, match="come back"):
            client.wait(job)
        with pytest.raises(DaemonNotRunning):
            client.ping()
        daemon.script = lambda daemon, peer, request, _: daemon.send(
            peer, events.Pong(id=request.id, version="2", protocol=1, uptime_s=0.0)
        )
        daemon.start()
        assert client.ping().version == "2"


def test_a_second_thread_is_told_to_make_its_own_client(client: Client, daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    failures: list[GlmttsError] = []

    def speak() -> None:
        try:
            client.speak("long", timeout=0.5)
        except GlmttsError as failure:
            failures.append(failure)

    speaker = threading.Thread(target=speak)
    speaker.start()
    daemon.next_of(Synthesize)
    with pytest.raises(GlmttsError, match="one thread"):
        client.ping()
    speaker.join(PATIENCE_S)
    assert [type(failure) for failure in failures] == [Timeout]


def test_a_closed_client_says_so(daemon: ScriptedDaemon) -> None:
    client = Client(daemon.endpoint)
    client.close()
    client.close()
    with pytest.raises(GlmttsError, match="closed"):
        client.ping()


def test_an_operator_reaches_the_control_socket_beside_the_requests_socket(control_daemon: ScriptedDaemon) -> None:
    with Control(f"ipc://{control_daemon.path.parent}/glmtts.sock") as control:
        assert control.status() == {"op": "status"}
        assert control.call("recycle", worker="all") == {"op": "recycle"}
        assert control.call("voice_add", b"RIFF", name="me", text="hi") == {"op": "voice_add"}
        assert control.call("ping")["protocol"] == 1
        assert control.jobs() == []
        assert control.cancel("j1") == "cancelled"
        assert control.drain(1.0) == {"op": "drain"}
    with pytest.raises(GlmttsError, match="ipc"):
        Control("tcp://127.0.0.1:5555")


def test_a_timeout_that_is_no_number_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="timeout: not a number"):
        client.ping(timeout=float("nan"))


def test_pieces_that_the_daemon_does_not_answer_cost_no_processor_time(
    client: Client, daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.script = accept_only
    polls = 0
    poll = client._connection.poll

    def counted(wait_s: float, wakes: int | None = None) -> None:
        nonlocal polls
        polls += 1
        poll(wait_s, wakes)

    monkeypatch.setattr(client._connection, "poll", counted)
    pieces = (text for _ in range(200) for text in ("A piece.", FLUSH))
    with client.stream(pieces, timeout=0.5) as stream, pytest.raises(Timeout):
        next(stream)
    assert polls < 200
