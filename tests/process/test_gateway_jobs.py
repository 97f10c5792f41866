"""Jobs over HTTP that are fetched later: batches, ranges of a file, and whose they are."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from ..support.gateways import Gateway, keys_for
from .conftest import Daemon, Start

BATCH = "/v1/audio/speech/batch"
#: Speech that takes as long as it lasts.
SLOW = {"fault": "audio", "seconds": 0.8, "rtf": 1.0, "segments": 2}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    # Batches wait for their turn here, as a limit says it.
    return start_shared(limits={"rate": "", "rate_batch": "20/second"})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    return keys_for(tmp_path_factory.mktemp("keys"), "alice", "bob", "carol")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, object]) -> str:
    folder = tmp_path_factory.mktemp("prompts")
    with io.BytesIO() as file:
        soundfile.write(file, [0.5 * ((i // 40) % 2) - 0.25 for i in range(48_000)], 24_000, format="WAV")
        (folder / "anna.wav").write_bytes(file.getvalue())
    (folder / "anna.txt").write_text("说的话。")
    return f'api_keys = "{keys[0]}"\nanonymous = true\nprompts_folder = "{folder}"\n'


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, settings: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with contextlib.closing(Gateway(daemon, tmp_path_factory.mktemp("gateway"), settings)) as gateway:
        yield gateway


def job(gateway: Gateway, options: dict[str, Any], **headers: str) -> str:
    """The id of a job that was taken."""
    body = {"input": "A job.", "response_format": "wav", "options": options}
    status, answer, _ = gateway.ask("POST", "/v1/audio/jobs", body, **headers)
    assert status == 202, answer
    return str(answer["id"])


# --- batches


def test_the_items_of_a_batch_are_spoken_and_a_wrong_one_fails_alone(gateway: Gateway) -> None:
    items = [
        {"input": "第一句。"},
        {"input": "The second.", "response_format": "mp3", "voice": None, "user": "u"},
        {"input": ""},
        "no object",
        {"input": "x", "voice": "nonesuch"},
        {"input": "x", "options": {"fault": "raise"}},
        {"input": "x", "priority": "vip"},
    ]
    status, answer, headers = gateway.ask("POST", BATCH, {"items": items, "response_format": "flac", "seed": 7})
    assert status == 200 and headers["x-glmtts-ignored"] == "user"
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (7, 2, 5)
    assert [result["index"] for result in answer["results"]] == list(range(7))
    spoken = [soundfile.info(io.BytesIO(base64.b64decode(result["audio_data"]))) for result in answer["results"][:2]]
    assert [info.format for info in spoken] == ["FLAC", "MP3"]
    assert [result["media_type"] for result in answer["results"][:2]] == ["audio/flac", "audio/mpeg"]
    assert answer["results"][0]["usage"]["input_tokens"] == 4
    wrong = [(result["status"], result["code"]) for result in answer["results"][2:]]
    codes = ["bad_request", "bad_request", "voice_not_found", "synthesis_failed", "forbidden"]
    assert wrong == [("error", code) for code in codes] and all(result["error"] for result in answer["results"][2:])
    listed = {info["id"]: info for info in gateway.ask("GET", "/v1/audio/jobs")[1]["data"]}
    assert listed[answer["results"][0]["job"]]["priority"] == "batch"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [{"input": "x"}] * 1_001}, "items"),
        ({"items": [{"input": "x"}], "response_format": "aac"}, "response_format"),
        ({"items": [{"input": "x"}], "speed": "fast"}, "speed"),
        ({"items": [{"input": "x"}], "input": "y"}, "input"),
    ],
)
def test_a_wrong_batch_is_refused_as_a_whole(gateway: Gateway, body: object, param: str) -> None:
    status, answer, _ = gateway.ask("POST", BATCH, body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_batch_waits_for_the_rate_of_its_customer(gateway: Gateway) -> None:
    _, answer, _ = gateway.ask(
        "POST", BATCH, {"items": [{"input": f"No. {i}", "response_format": "mp3"} for i in range(45)]}
    )
    assert (answer["succeeded"], answer["failed"]) == (45, 0)


def test_a_batch_whose_listener_leaves_is_cancelled(gateway: Gateway, daemon: Daemon, keys: Any) -> None:
    headers = keys[1]["carol"]
    body = {"items": [{"input": f"Line {i}", "options": SLOW | {"seconds": 60.0}} for i in range(3)]}
    connection = gateway.connection()
    connection.request("POST", BATCH, json.dumps(body), headers)

    def states() -> list[str]:
        return sorted(info["status"] for info in gateway.ask("GET", "/v1/audio/jobs", **headers)[1]["data"])

    daemon.until(lambda: len(states()) == 3 and "running" in states(), "the batch is there")
    assert connection.sock
    connection.sock.close()
    connection.close()
    daemon.until(lambda: states() == ["cancelled"] * 3, "all of its jobs are cancelled")


def test_a_batch_with_a_key_is_fetched_after_its_gateway_was_killed(
    gateway: Gateway, daemon: Daemon, settings: str, keys: Any, tmp_path: Path
) -> None:
    headers = {**keys[1]["bob"], "Idempotency_Key": "chapter 1"}
    body = {"items": [{"input": f"Line {i}", "options": SLOW} for i in range(3)]}
    first = Gateway(daemon, tmp_path, settings)
    connection = first.connection()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", BATCH, json.dumps(body), sent)
    answer = connection.getresponse()
    begun = b""
    while b"audio_data" not in begun:
        begun += answer.read1(10_000)
    first.process.kill()
    first.process.wait()
    connection.close()
    status, whole, _ = gateway.ask("POST", BATCH, body, **headers)
    assert (status, whole["succeeded"]) == (200, 3)
    jobs = [result["job"] for result in whole["results"]]
    listed = gateway.ask("GET", "/v1/audio/jobs", **keys[1]["bob"])[1]["data"]
    assert {info["id"] for info in listed} == set(jobs) and len(jobs) == 3
    # The same key of another customer is another batch.
    other = gateway.ask("POST", BATCH, {"items": [{"input": "Else."}]}, Idempotency_Key="chapter 1")[1]
    assert other["succeeded"] == 1 and other["id"] != whole["id"]


def test_listeners_that_leave_keep_no_others_out(gateway: Gateway, daemon: Daemon) -> None:
    id = job(gateway, {"fault": "audio", "seconds": 100.0, "rtf": 1.0, "segments": 200})

    def listener(path: str) -> http.client.HTTPConnection:
        connection = gateway.connection()
        connection.request("GET", f"/v1/audio/jobs/{id}/{path}")
        return connection

    def is_let_in() -> bool:
        with contextlib.closing(listener("events")) as connection:
            return b"event: job" in connection.getresponse().read1(1_000)

    for _ in range(3):
        listeners = [listener(("events", "audio?follow=1")[number % 2]) for number in range(30)]
        daemon.until(is_let_in, "one more listener is let in")
        for connection in listeners:
            connection.close()
    assert gateway.ask("DELETE", f"/v1/audio/jobs/{id}")[1]["status"] == "cancelled"


# --- the file of a job


def test_a_part_of_a_file_is_what_was_asked_for(gateway: Gateway) -> None:
    path = f"/v1/audio/jobs/{job(gateway, {})}/audio"
    _, file, headers = gateway.ask("GET", path)
    size, etag = len(file), headers["etag"]
    assert headers["accept-ranges"] == "bytes" and struct.unpack("<I", file[4:8]) == (size - 8,)
    parts = {
        "bytes=0-": (206, file),
        "bytes=-5": (206, file[-5:]),
        "bytes=4-7": (206, file[4:8]),
        f"bytes=8-{size + 9}": (206, file[8:]),
        f"bytes=-{size + 9}": (206, file),
        f"bytes={size}-": (416, None),
        "bytes=-0": (416, None),
        # What may be ignored: several parts, other units, nonsense, a number without end.
        "bytes=0-0,4-5": (200, file),
        "items=0-5": (200, file),
        "bytes=7-4": (200, file),
        "bytes=-": (200, file),
        "bytes=0-" + "9" * 5_000: (200, file),
    }
    for asked, (status, part) in parts.items():
        got, body, about = gateway.ask("GET", path, Range=asked)
        assert got == status and part in (None, body), asked
        if got == 416:
            assert about["content-range"] == f"bytes */{size}"
        assert about["content-range"].startswith("bytes ") if got != 200 else "content-range" not in about, asked
    assert gateway.ask("GET", path, Range="bytes=0-3", If_Range=etag)[0] == 206
    assert gateway.ask("GET", path, Range="bytes=0-3", If_Range='"of another file"')[0] == 200
    assert gateway.ask("GET", path, If_None_Match=f'"x", {etag}')[0] == 304
    status, body, about = gateway.ask("HEAD", path, Range="bytes=0-3")
    assert (status, body, about["content-length"]) == (200, b"", str(size))


def test_a_customer_does_not_hear_what_another_waits_for(gateway: Gateway, daemon: Daemon, keys: Any) -> None:
    alice, bob = keys[1]["alice"], keys[1]["bob"]
    heard: list[int] = []
    listener = threading.Thread(target=lambda: heard.append(gateway.ask("GET", path, **alice)[0]))

    def she_waits() -> bool:
        return "glmtts_gateway_open_requests 2.0" in gateway.ask("GET", "/metrics")[1].decode()

    with daemon.workers_stand_still():
        path = f"/v1/audio/jobs/{job(gateway, {}, **alice)}/audio"
        listener.start()
        daemon.until(she_waits, "she waits")
        assert gateway.ask("GET", path, **bob)[0] == 404
    listener.join()
    assert heard == [200]


def test_a_job_is_heard_while_it_is_made_and_goes_on_without_its_listener(gateway: Gateway, daemon: Daemon) -> None:
    options = {"fault": "audio", "seconds": 1.5, "rtf": 1.0, "segments": 6}
    id = job(gateway, options)
    path = f"/v1/audio/jobs/{id}"

    def state() -> str:
        return str(gateway.ask("GET", path)[1]["status"])

    with contextlib.closing(gateway.connection()) as first:
        first.request("GET", f"{path}/audio?follow=1")
        answer = first.getresponse()
        begun = answer.read(1_000)
        with daemon.workers_stand_still():
            assert state() == "running" and "content-length" not in answer.headers
            with contextlib.closing(gateway.connection()) as second:
                # Who comes later hears it from the beginning too.
                second.request("GET", f"{path}/audio?follow=true")
                assert second.getresponse().read(1_000) == begun
        rest = answer.read()
    _, file, _ = gateway.ask("GET", f"{path}/audio?follow=1")
    assert state() == "done" and soundfile.info(io.BytesIO(file)).duration == 1.5
    # What was heard lacks nothing but the sizes in the header of the file.
    assert (begun + rest)[44:] == file[44:]
    assert gateway.ask("GET", f"{path}/audio?follow=maybe")[1]["error"]["param"] == "follow"


# --- the field report's service


def test_the_task_api_speaks_with_a_file_of_the_folder(gateway: Gateway, daemon: Daemon) -> None:
    status, task, _ = gateway.ask("POST", "/api/tts", {"input_text": "你好", "prompt_audio": "anna.wav"})
    assert status == 202, task
    path = f"/api/tts/{task['task_id']}"
    daemon.until(lambda: gateway.ask("GET", path)[1]["status"] == "done", "it is done")
    for wrong in ("../anna.wav", "/etc/passwd", "none.wav"):
        status, answer, _ = gateway.ask("POST", "/api/tts", {"input_text": "你好", "prompt_audio": wrong})
        assert (status, answer["error"]["param"]) == (400, "prompt_audio")
