"""The gateway with real programs: OpenAI's own package, plain HTTP, and connections that break."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile

from ..support import inheriting
from ..support.gateways import GATEWAY, Gateway, keys_for
from .conftest import Daemon, Start

#: Speech that takes as long as it lasts, in ten segments.
SLOW = {"fault": "audio", "seconds": 10.0, "rtf": 1.0, "segments": 10}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared()


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(daemon, tmp_path_factory.mktemp("gateway"))
    yield gateway
    gateway.close()


def cancelled(gateway: Gateway) -> int:
    """How many of this visitor's jobs were cancelled."""
    return [job["status"] for job in gateway.ask("GET", "/v1/audio/jobs")[1]["data"]].count("cancelled")


# --- OpenAI's package


@pytest.mark.parametrize(("asked", "kind"), [("mp3", "MP3"), ("opus", "OGG"), ("flac", "FLAC"), ("wav", "WAV")])
def test_openai_s_package_gets_a_file_of_each_format(gateway: Gateway, asked: Any, kind: str) -> None:
    with gateway.openai() as client:
        speech = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello there.", response_format=asked)
    assert soundfile.info(io.BytesIO(speech.content)).format == kind


def test_openai_s_package_hears_the_beginning_before_the_end_is_made(gateway: Gateway) -> None:
    body = {"options": {"fault": "audio", "seconds": 3.0, "rtf": 1.0, "segments": 6}}
    began = time.monotonic()
    with (
        gateway.openai() as client,
        client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="x", response_format="pcm", extra_body=body
        ) as answer,
    ):
        pieces = answer.iter_bytes()
        first = next(pieces)
        first_s = time.monotonic() - began
        total = len(first) + sum(map(len, pieces))
    assert total == 3 * 24_000 * 2
    assert first_s < (time.monotonic() - began) / 2


def test_openai_s_package_reads_events(gateway: Gateway) -> None:
    with (
        gateway.openai() as client,
        client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Hello.", response_format="pcm", stream_format="sse"
        ) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"} and events[0]["audio"]
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["input_tokens"] == 6


def test_openai_s_package_lists_models_and_names_the_wrong_voice(gateway: Gateway) -> None:
    with gateway.openai() as client:
        assert "glm-tts" in [model.id for model in client.models.list()]
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.speech.create(model="tts-1", voice="nonesuch", input="Hello.")
    assert refused.value.code == "voice_not_found" and refused.value.param == "voice"


def test_openai_s_package_obeys_when_to_come_back(start: Start, tmp_path: Path) -> None:
    daemon = start(limits={"rate": "1/second"})
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway, gateway.openai(max_retries=5) as client:
        began = time.monotonic()
        for number in range(3):
            client.audio.speech.create(model="tts-1", voice="alloy", input=f"Number {number}.")
        assert time.monotonic() - began > 1.0
        while (answer := gateway.ask("POST", "/v1/audio/speech", {"input": "One more."}))[0] == 200:
            pass
    status, body, headers = answer
    assert status == 429 and body["error"]["code"] == "rate_limited"
    assert headers["x-should-retry"] == "true" and int(headers["retry-after-ms"]) > 0
    # What can't succeed is not sent again.
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway:
        assert gateway.ask("POST", "/v1/audio/speech", {"input": "..."})[2]["x-should-retry"] == "false"


def test_a_timeout_of_openai_s_package_cancels_the_job(gateway: Gateway, daemon: Daemon) -> None:
    before = cancelled(gateway)
    with (
        gateway.openai(timeout=1.0, max_retries=0) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.audio.speech.create(
            model="tts-1",
            voice="alloy",
            input="x",
            extra_body={"options": {"fault": "audio", "seconds": 3_000.0, "rtf": 100.0}},
        )
    daemon.until(lambda: cancelled(gateway) == before + 1, "the job is cancelled")
    (id, *_) = [job["id"] for job in gateway.ask("GET", "/v1/audio/jobs")[1]["data"] if job["status"] == "cancelled"]
    daemon.until(lambda: re.search(f"job={id} .*code=cancelled", daemon.log()), "the daemon's log says so")


# --- streams that break


def test_a_listener_that_leaves_cancels_its_job(gateway: Gateway, daemon: Daemon) -> None:
    before = cancelled(gateway)
    connection = gateway.connection()
    connection.request(
        "POST", "/v1/audio/speech", json.dumps({"input": "x", "response_format": "pcm", "options": SLOW})
    )
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read(1_000)
    connection.close()
    answer.close()
    daemon.until(lambda: cancelled(gateway) == before + 1, "the job is cancelled")


@pytest.mark.parametrize("version", [11, 10])
def test_a_stream_whose_worker_dies_is_never_a_file_that_looks_whole(
    gateway: Gateway, daemon: Daemon, version: int
) -> None:
    options = {"fault": "segv", "after_segments": 2, "segments": 4, "seconds": 0.4}
    # Its workers die of it, so that the same would be refused.
    body = {"input": f"x {version}", "response_format": "wav", "options": options}
    with contextlib.closing(gateway.connection()) as connection:
        connection._http_vsn, connection._http_vsn_str = version, f"HTTP/1.{version - 10}"  # type: ignore[attr-defined]
        connection.request("POST", "/v1/audio/speech", json.dumps(body))
        answer = connection.getresponse()
        # Without chunks, the end of a file is that of its connection.
        with pytest.raises(http.client.IncompleteRead if version == 11 else ConnectionResetError):
            answer.read()
    daemon.until(lambda: "error=worker_crashed" in gateway.log_file.read_text(), "the access log has its code")
    assert "Traceback" not in gateway.log_file.read_text()
    daemon.until_ready()


def test_a_failure_before_the_first_audio_has_its_own_status(gateway: Gateway) -> None:
    status, body, _ = gateway.ask("POST", "/v1/audio/speech", {"input": "x", "options": {"fault": "raise"}})
    assert (status, body["error"]["code"], body["error"]["type"]) == (500, "synthesis_failed", "server_error")


def test_a_daemon_that_is_away_is_503_and_the_gateway_goes_on_when_it_is_back(start: Start, tmp_path: Path) -> None:
    daemon = start()
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway:
        assert gateway.ask("POST", "/v1/audio/speech", {"input": "before"})[0] == 200
        daemon.stop()
        status, body, headers = gateway.ask("POST", "/v1/audio/speech", {"input": "meanwhile"})
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "unavailable", "5")
        assert gateway.ask("GET", "/readyz")[0] == 503 and gateway.ask("GET", "/livez")[0] == 200
        daemon.until(lambda: "connection to the daemon was lost" in gateway.log_file.read_text(), "it is logged")
        daemon.process = daemon.launch()
        daemon.until_ready()
        daemon.until(lambda: gateway.ask("POST", "/v1/audio/speech", {"input": "after"})[0] == 200, "it goes on")


# --- jobs


def test_a_job_outlives_its_gateway_and_is_its_customer_s_alone(start: Start, tmp_path: Path) -> None:
    daemon = start(queue={"max_waiting": 100, "max_share": 1.0})
    file, headers = keys_for(tmp_path, "alice", "bob")
    settings = f'api_keys = "{file}"\n'
    first = Gateway(daemon, tmp_path, settings)
    ids = {}
    for number in range(30):
        name = ("alice", "bob")[number % 2]
        body = {"input": f"Job {number}.", "label": f"No. {number}"}
        status, job, _ = first.ask("POST", "/v1/audio/jobs", body, **headers[name])
        assert (status, job["label"]) == (202, f"No. {number}")
        ids[job["id"]] = name
    first.process.kill()
    first.process.wait()
    with contextlib.closing(Gateway(daemon, tmp_path, settings)) as second:
        for id, name in ids.items():
            other = "bob" if name == "alice" else "alice"
            assert second.ask("GET", f"/v1/audio/jobs/{id}/audio", **headers[other])[0] == 404
            assert second.ask("DELETE", f"/v1/audio/jobs/{id}", **headers[other])[0] == 404
            status, audio, about = second.ask("GET", f"/v1/audio/jobs/{id}/audio", **headers[name])
            assert status == 200 and soundfile.info(io.BytesIO(audio)).duration > 0
            status, part, told = second.ask("GET", f"/v1/audio/jobs/{id}/audio", Range="bytes=10-19", **headers[name])
            assert (status, part) == (206, audio[10:20])
            assert told["content-range"] == f"bytes 10-19/{len(audio)}" and told["etag"] == about["etag"]
        listed = second.ask("GET", "/v1/audio/jobs", **headers["alice"])[1]["data"]
        assert {job["id"] for job in listed} == {id for id, name in ids.items() if name == "alice"}
        assert {job["label"] for job in listed} == {f"No. {number}" for number in range(0, 30, 2)}
        (today,) = second.ask("GET", "/v1/audio/usage", **headers["alice"])[1]["data"]
        assert (today["jobs"], today["characters"]) == (15, sum(len(f"Job {number}.") for number in range(0, 30, 2)))
        assert second.ask("GET", "/v1/audio/usage?since=soon", **headers["alice"])[0] == 400
        assert second.ask("GET", "/v1/audio/jobs")[0] == 401
    assert daemon.status()["counts"]["done"] == 30


def test_the_events_of_a_job_are_told_up_to_its_end(gateway: Gateway) -> None:
    options = {"fault": "audio", "seconds": 0.6, "rtf": 0.5, "segments": 3}
    _, job, _ = gateway.ask("POST", "/v1/audio/jobs", {"input": "x", "options": options})
    _, events, _ = gateway.ask("GET", f"/v1/audio/jobs/{job['id']}/events")
    assert b"event: done" in events and f'"/v1/audio/jobs/{job["id"]}/audio"'.encode() in events


def test_a_key_that_is_sent_twice_is_one_job(gateway: Gateway) -> None:
    ids = {gateway.ask("POST", "/v1/audio/jobs", {"input": "Once."}, Idempotency_Key="k1")[1]["id"] for _ in range(2)}
    assert len(ids) == 1


def test_the_task_api_of_the_flask_service(gateway: Gateway, daemon: Daemon) -> None:
    status, task, _ = gateway.ask(
        "POST", "/api/tts", {"input_text": "你好", "prompt_audio": "", "output_name": "a.wav"}
    )
    assert (status, task["message"]) == (202, "任务已提交")
    path = f"/api/tts/{task['task_id']}"
    daemon.until(lambda: gateway.ask("GET", path)[1]["status"] == "done", "it is done")
    told = gateway.ask("GET", path)[1]
    assert told["progress"] == 100 and told["download_url"] == f"{path}/audio"
    assert soundfile.info(io.BytesIO(gateway.ask("GET", told["download_url"])[1])).samplerate == 24_000


def test_a_task_is_of_a_class_that_its_key_may_use(daemon: Daemon, tmp_path: Path) -> None:
    file, headers = keys_for(tmp_path, "reader", "boss")
    file.write_text(file.read_text().replace('["interactive", "batch"]', '["batch"]', 1))
    file.write_text(file.read_text().replace('["interactive", "batch"]', '["vip"]', 1))
    with contextlib.closing(Gateway(daemon, tmp_path, f'api_keys = "{file}"\n')) as gateway:
        status, task, _ = gateway.ask("POST", "/api/tts", {"input_text": "你好"}, **headers["reader"])
        assert status == 202
        told = gateway.ask("GET", f"/v1/audio/jobs/{task['task_id']}", **headers["reader"])[1]
        assert told["priority"] == "batch"
        status, body, _ = gateway.ask("POST", "/api/tts", {"input_text": "你好"}, **headers["boss"])
        assert (status, body["error"]["param"]) == (403, "priority")


def test_a_visitor_s_book_does_not_delay_another_visitor_s_sentence(start: Start, tmp_path: Path) -> None:
    daemon = start()
    file, headers = keys_for(tmp_path, "reader", "visitor")
    with contextlib.closing(Gateway(daemon, tmp_path, f'api_keys = "{file}"\n')) as gateway:
        book = {"fault": "audio", "seconds": 300.0, "rtf": 1.0, "segments": 300}
        _, job, _ = gateway.ask(
            "POST", "/v1/audio/jobs", {"input": "A book.", "options": book, "priority": "batch"}, **headers["reader"]
        )
        path = f"/v1/audio/jobs/{job['id']}"
        daemon.until(
            lambda: gateway.ask("GET", path, **headers["reader"])[1]["status"] == "running", "the book is spoken"
        )
        began = time.monotonic()
        assert gateway.ask("POST", "/v1/audio/speech", {"input": "A sentence."}, **headers["visitor"])[0] == 200
        assert time.monotonic() - began < 10.0, "one segment of a second, and some slack for the machine"
        gateway.ask("DELETE", path, **headers["reader"])


# --- what is wrong


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"no json", 400, None),
        (b"[1]", 400, None),
        (b'{"input": "x"', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"input": "\xff"}', 400, None),
        (b"{}", 400, "input"),
        (b'{"input": 5}', 400, "input"),
        (b'{"input": ""}', 400, "input"),
        (b'{"input": "x", "response_format": "aac"}', 400, "response_format"),
        (b'{"input": "x", "speed": 9}', 400, "speed"),
        (b'{"input": "x", "seed": -1}', 400, "seed"),
        (b'{"input": "x", "sample_rate": 1}', 400, "sample_rate"),
        (b'{"input": "x", "priority": "vip"}', 403, "priority"),
        (b'{"input": "x", "ref_audio": "AAAA"}', 400, "ref_text"),
        (b'{"input": "x", "ref_text": "y", "ref_audio": "file:///etc/passwd"}', 400, "ref_audio"),
        (b'{"input": "x", "ref_text": "y", "ref_audio": "http://10.0.0.1/a.wav"}', 400, "ref_audio"),
        (b'{"input": "x", "ref_text": "y", "ref_audio": "/etc/passwd"}', 400, "ref_audio"),
        (b'{"input": "x", "ref_text": "y", "ref_audio": "data:audio/wav,abc"}', 400, "ref_audio"),
        (b'{"input": "x", "ref_text": "y", "ref_audio": "***"}', 400, "ref_audio"),
        (b'{"input": "x", "options": {"nonesuch": 1}}', 400, "options"),
    ],
)
def test_a_wrong_body_is_answered_with_the_key_at_fault(
    gateway: Gateway, body: bytes, status: int, param: str | None
) -> None:
    answer = gateway.ask("POST", "/v1/audio/speech", body)
    assert (answer[0], answer[1]["error"]["param"]) == (status, param), answer[1]
    assert answer[1]["error"]["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(gateway: Gateway) -> None:
    with contextlib.closing(gateway.connection()) as connection:
        connection.putrequest("POST", "/v1/audio/speech")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_what_is_not_there_is_said_in_the_same_form(gateway: Gateway) -> None:
    assert gateway.ask("GET", "/nonesuch")[1]["error"]["code"] == "not_found"
    assert gateway.ask("GET", "/v1/audio/speech")[1]["error"]["code"] == "method_not_allowed"
    assert gateway.ask("GET", "/v1/audio/jobs/nonesuch-1")[1]["error"]["code"] == "job_not_found"


def test_keys_that_are_ignored_are_named(gateway: Gateway) -> None:
    _, _, headers = gateway.ask("POST", "/v1/audio/speech", {"input": "x", "quality": "hd", "user": "u1"})
    assert headers["x-glmtts-ignored"] == "quality, user"


def test_the_log_has_a_line_for_each_request_and_no_text(gateway: Gateway, daemon: Daemon) -> None:
    gateway.ask("POST", "/v1/audio/speech", {"input": "geheimwort"})
    daemon.until(lambda: "POST /v1/audio/speech 200" in gateway.log_file.read_text(), "the line is there")
    assert "geheimwort" not in gateway.log_file.read_text()
    assert b'glmtts_gateway_requests_total{route="/v1/audio/speech",status="200"}' in gateway.ask("GET", "/metrics")[1]


@pytest.mark.parametrize("settings", ["", 'api_keys = "/nonesuch"\n', "listen_on = 3\n"])
def test_a_gateway_that_all_could_use_does_not_start(tmp_path: Path, settings: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[gateway]\n{settings}")
    done = subprocess.run(
        [GATEWAY, "--config", str(file), "--listen", "0.0.0.0:0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 78 and "Traceback" not in done.stderr
    assert ("anonymous" in done.stderr) if not settings else done.stderr


def test_a_connection_that_is_open_when_the_gateway_stops_gets_its_last_answer(daemon: Daemon, tmp_path: Path) -> None:
    gateway = Gateway(daemon, tmp_path)
    with contextlib.closing(gateway.connection()) as connection:
        connection.request("GET", "/livez")
        assert connection.getresponse().read() and connection.sock
        gateway.process.terminate()
        # As a proxy that does not know of the stop: it sends on the connection that it has.
        daemon.until(lambda: _refuses(gateway.port), "no new connection is taken")
        connection.request("POST", "/v1/audio/speech", json.dumps({"input": "x"}))
        answer = connection.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close") and answer.read()
    assert gateway.process.wait(10) == 0


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_gateway_serves_with_closed_streams(daemon: Daemon, tmp_path: Path) -> None:
    close = [f"os.close({fd})" for fd in range(3)]
    gateway = Gateway(daemon, tmp_path, through=[sys.executable, inheriting.__file__, *close, "--"])
    try:
        assert gateway.ask("GET", "/readyz")[0] == 200
        for fd in range(3):
            assert Path(f"/proc/{gateway.process.pid}/fd/{fd}").readlink() == Path("/dev/null")
    finally:
        gateway.close()
