"""The gateway's WebSocket with a real daemon: a text in pieces, as a language model makes it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from websockets.sync.client import ClientConnection, connect

from ..support.gateways import Gateway, keys_for
from .conftest import PATIENCE_S, Daemon, Start

#: As /metrics writes it.
OPEN_STREAMS = 'glmtts_gateway_open_streams{route="/v1/audio/speech/stream"}'
SENTENCES = ("Good morning. ", "How are you today? ", "I am fine.")


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared()


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with contextlib.closing(Gateway(daemon, tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


@contextlib.contextmanager
def session(gateway: Gateway, headers: dict[str, str] | None = None, **config: Any) -> Iterator[ClientConnection]:
    url = f"ws://127.0.0.1:{gateway.port}/v1/audio/speech/stream"
    with connect(url, additional_headers=headers, proxy=None) as connection:
        say(connection, "session.config", **{"response_format": "pcm", **config})
        yield connection


def say(connection: ClientConnection, type: str, **keys: Any) -> None:
    connection.send(json.dumps({"type": type, **keys}))


def until(connection: ClientConnection, type: str) -> tuple[dict[str, Any], bytes]:
    """The next message of this type, and the audio before it."""
    audio = b""
    while True:
        message = connection.recv(PATIENCE_S)
        if isinstance(message, bytes):
            audio += message
        elif (found := json.loads(message))["type"] == type:
            return found, audio
        else:
            assert found["type"] != "error", found


def job_of(gateway: Gateway, id: str) -> str:
    return str(gateway.ask("GET", f"/v1/audio/jobs/{id}")[1]["status"])


def test_each_sentence_is_heard_before_the_next_one_is_written(gateway: Gateway, daemon: Daemon) -> None:
    with session(gateway) as connection:
        audio = b""
        for number, sentence in enumerate(SENTENCES):
            # Characters one by one, as tokens come.
            for character in sentence:
                say(connection, "input.text", text=character)
            if number == 0:
                start, _ = until(connection, "audio.start")
                assert (start["sample_rate"], start["channels"]) == (24_000, 1)
            if number < 2:
                frame = connection.recv(PATIENCE_S)
                assert isinstance(frame, bytes)
                audio += frame
        say(connection, "input.done")
        done, rest = until(connection, "audio.done")
        audio += rest
        assert done["total_bytes"] == len(audio) and not done["error"]
        assert until(connection, "session.done")[0]["total_sentences"] == 1
        assert job_of(gateway, start["job"]) == "done"
        # The next text on the same connection, and at once.
        say(connection, "input.text", text=SENTENCES[0])
        say(connection, "input.done")
        assert until(connection, "session.done")[0]["utterance_index"] == 1
        daemon.until(lambda: gateway_metric(gateway, OPEN_STREAMS) == 1, "the metric counts it")
    daemon.until(lambda: gateway_metric(gateway, OPEN_STREAMS) == 0, "the metric forgets it")
    daemon.until(lambda: "WEBSOCKET /v1/audio/speech/stream 101" in gateway.log_file.read_text(), "it is logged")
    assert "morning" not in gateway.log_file.read_text()


def gateway_metric(gateway: Gateway, name: str) -> float:
    text = gateway.ask("GET", "/metrics")[1].decode()
    return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)))


@pytest.mark.parametrize(("asked", "kind"), [("wav", "WAV"), ("mp3", "MP3"), ("opus", "OGG"), ("flac", "FLAC")])
def test_the_frames_of_a_text_are_a_file(gateway: Gateway, asked: str, kind: str) -> None:
    spoken = []
    for in_one in (False, True):
        with session(gateway, response_format=asked, stream_audio=not in_one) as connection:
            for sentence in SENTENCES:
                say(connection, "input.text", text=sentence)
            say(connection, "input.done")
            _, audio = until(connection, "audio.done")
            assert soundfile.info(io.BytesIO(audio)).format == kind
            spoken.append(audio)
            if in_one and asked == "wav":
                assert int.from_bytes(audio[4:8], "little") == len(audio) - 8
    # But for the sizes in a header, and the random serial number of Ogg.
    assert asked == "opus" or spoken[0][44:] == spoken[1][44:]


def test_cancel_and_a_closed_socket_end_the_job_in_the_daemon(gateway: Gateway, daemon: Daemon) -> None:
    slow = {"fault": "audio", "seconds": 10.0, "rtf": 1.0, "segments": 10}
    with session(gateway, options=slow) as connection:
        say(connection, "input.text", text="One. Two.")
        first, _ = until(connection, "audio.start")
        say(connection, "input.cancel")
        assert until(connection, "session.done")[0]["cancelled"] is True
        assert job_of(gateway, first["job"]) == "cancelled"
        say(connection, "input.text", text="One. Two.")
        second, _ = until(connection, "audio.start")
        assert job_of(gateway, second["job"]) == "running"
    daemon.until(lambda: job_of(gateway, second["job"]) == "cancelled", "the job was cancelled")


def test_errors_are_named_and_leave_the_connection(gateway: Gateway) -> None:
    def refused(connection: ClientConnection, text: str) -> dict[str, Any]:
        say(connection, "input.text", text=text)
        while isinstance(message := connection.recv(PATIENCE_S), bytes) or json.loads(message)["type"] != "error":
            pass
        # What comes of this text after its error is no text of its own.
        say(connection, "input.text", text="more of it. ")
        say(connection, "input.done")
        assert until(connection, "session.done")[0]["utterance_index"] == json.loads(message)["utterance_index"]
        return dict(json.loads(message))

    with session(gateway, voice="nonesuch") as connection:
        assert refused(connection, "Hello.")["code"] == "voice_not_found"
        say(connection, "session.config", response_format="pcm")
        assert refused(connection, "word " * 1_001)["code"] == "too_large"
        assert refused(connection, "bell \x07")["code"] == "bad_request"
        say(connection, "input.text", text="... ")
        say(connection, "input.done")
        assert until(connection, "session.done")[0]["total_sentences"] == 0
        say(connection, "session.config", response_format="pcm", options={"fault": "exit"})
        error = refused(connection, "Hello. ")
        assert (error["code"], error["retryable"]) in {("worker_crashed", True), ("quarantined", False)}, error
        say(connection, "session.config", response_format="pcm")
        say(connection, "input.text", text="Hello.")
        say(connection, "input.done")
        assert until(connection, "audio.done")[1]


def test_each_key_has_its_own_jobs_and_a_key_that_is_gone_speaks_no_more(daemon: Daemon, tmp_path: Path) -> None:
    file, headers = keys_for(tmp_path, "anna", "bert")
    with (
        contextlib.closing(Gateway(daemon, tmp_path, f'api_keys = "{file}"\n')) as gateway,
        session(gateway, headers["anna"]) as connection,
    ):
        say(connection, "input.text", text="Hello.")
        say(connection, "input.done")
        job = until(connection, "audio.start")[0]["job"]
        until(connection, "session.done")
        assert gateway.ask("GET", f"/v1/audio/jobs/{job}", **headers["anna"])[0] == 200
        assert gateway.ask("GET", f"/v1/audio/jobs/{job}", **headers["bert"])[0] == 404
        file.write_text("")
        gateway.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: gateway.ask("GET", "/v1/audio/jobs", **headers["anna"])[0] == 401, "the key is gone")
        say(connection, "input.text", text="Hello.")
        while (error := json.loads(connection.recv(PATIENCE_S)))["type"] != "error":
            pass
        assert error["code"] == "invalid_api_key"
