"""What is no request, or one that would harm: each has its named answer, and other clients notice nothing."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import Iterator

import psutil
import pytest
import soundfile

from ..support.gateways import Gateway
from ..support.raw_http import CHUNKED, HEADERS, connected, form, say
from .conftest import Daemon, Start

TEXT = "geheimwort"
FILE = 'form-data; name="audio_sample"; filename="a.wav"'


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(limits={"body_mib": 1})


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with contextlib.closing(Gateway(daemon, tmp_path_factory.mktemp("gateway"))) as gateway:
        gateway.ask("POST", "/v1/audio/speech", {"input": TEXT})
        memory = psutil.Process(gateway.process.pid).memory_info
        before = memory().rss
        with daemon.still_serves():
            yield gateway
            assert gateway.ask("POST", "/v1/audio/speech", {"input": TEXT})[0] == 200
        assert memory().rss - before < 100 << 20
        log = gateway.log_file.read_text()
        assert "Traceback" not in log and "internal error" not in log
        assert TEXT not in log and TEXT not in str(daemon.log())


# --- no HTTP


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "not_found"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET /\r\n\r\n", 400, "bad_request"),
        (HEADERS + b"Host: example.org\r\n\r\n", 400, "bad_request"),
        (HEADERS + b"Content-Length: -1\r\n\r\n", 400, "bad_request"),
        (HEADERS + b"Content-Length: +2\r\n\r\n{}", 400, "bad_request"),
        (HEADERS + b"Content-Length: 2, 3\r\n\r\n{}", 400, "bad_request"),
        (HEADERS + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n{}", 400, "bad_request"),
        (HEADERS + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "bad_request"),
        (HEADERS + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400, "bad_request"),
        (HEADERS + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "not_implemented"),
        (CHUNKED + b"no length\r\n", 400, "bad_request"),
        (CHUNKED + b"2\r\n{}no end\r\n", 400, "bad_request"),
        (HEADERS + b"a b: c\r\n\r\n", 400, "bad_request"),
        (HEADERS + b"a: \x00\r\n\r\n", 400, "bad_request"),
        (HEADERS + b"a: " + b"a" * 100_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (HEADERS + b"a: b\r\n" * 20_000 + b"\r\n", 431, "headers_too_large"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n", 431, "headers_too_large"),
        (b"GET /livez?" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "uri_too_long"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "method_not_allowed"),
        (b"GET http://example.org/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"),
    ],
)
def test_what_is_no_request_is_named(gateway: Gateway, sent: bytes, status: int, code: str) -> None:
    answer = say(gateway.port, sent)
    assert (answer.status, answer.error["code"]) == (status, code), answer
    assert answer.headers["x-should-retry"] == "false"


def test_a_body_that_is_longer_than_it_says_is_no_second_request(gateway: Gateway) -> None:
    with connected(gateway.port) as connection:
        connection.send(HEADERS + b"Content-Length: 2\r\n\r\n{}, and more\r\n\r\n")
        assert connection.answer().error["param"] == "input"
        assert connection.answer().error["message"].startswith("this is no HTTP/1.1 request")
        assert connection.answer().status == 0


def test_a_body_that_is_shorter_than_it_says_is_no_job(gateway: Gateway) -> None:
    body = json.dumps({"input": TEXT}).encode()
    before = len(gateway.ask("GET", "/v1/audio/jobs")[1]["data"])
    with connected(gateway.port) as connection:
        connection.send(HEADERS + b"Content-Length: 1000\r\n\r\n" + body)
    assert gateway.ask("GET", "/livez")[0] == 200
    assert len(gateway.ask("GET", "/v1/audio/jobs")[1]["data"]) == before


# --- bodies


def test_a_large_or_endless_body_is_refused_and_memory_stays(gateway: Gateway) -> None:
    memory = psutil.Process(gateway.process.pid).memory_info
    before = memory().rss
    mib = bytes(1 << 20)
    large = say(gateway.port, HEADERS + b"Content-Length: 104857600\r\n\r\n", *[mib] * 100)
    assert (large.status, large.error["code"]) == (413, "too_large")
    with connected(gateway.port) as connection:
        chunk = b"100000\r\n" + mib + b"\r\n"
        assert connection.send(CHUNKED, *[chunk] * 60) > 32 << 20
        assert connection.answer().status == 413
    assert memory().rss - before < 100 << 20


@pytest.mark.parametrize(
    "value",
    [
        b"[" + b"[]," * 9_000_000 + b"[]]",
        b"{" + b",".join(b'"%x":0' % number for number in range(1_000_000)) + b"}",
        b"[" * 9_000_000,
    ],
)
def test_a_body_that_would_become_far_larger_in_memory_delays_no_other_request(gateway: Gateway, value: bytes) -> None:
    began = time.monotonic()
    status, body, _ = gateway.ask("POST", "/v1/audio/speech", b'{"input": "x", "options": {"a": ' + value + b"}}")
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert time.monotonic() - began < 15


def test_the_recording_that_the_daemon_would_not_take_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    body = {"input": "x", "ref_text": "y", "ref_audio": base64.b64encode(bytes(3 << 20)).decode()}
    for path, sent, param in (
        ("/v1/audio/speech", body, "ref_audio"),
        ("/api/tts", {"input_text": "x", "prompt_audio": f"data:;base64,{body['ref_audio']}"}, "prompt_audio"),
    ):
        status, answer, _ = gateway.ask("POST", path, sent)
        assert (status, answer["error"]["param"]) == (413, param)


@pytest.mark.parametrize(
    "source",
    [
        "data:",
        "data:,",
        "data:audio/wav",
        "data:audio/wav;base64",
        "data:audio/wav;base64=,AAAA",
        "data:;base64,\u4f60\u597d",
        "data:;base64,A",
        "data:;base64,AA=A",
        "data:data:;base64,data:;base64,AAAA",
        "data:;base64,../../etc/passwd",
        "data:;base64," + "A\x00A\x00",
        "data:" + ";" * 1_000_000 + ",AAAA",
        "\u0661\u0661\u0661\u0661",
    ],
)
def test_a_data_uri_of_nonsense_is_refused(gateway: Gateway, source: str) -> None:
    for key, body in (
        ("ref_audio", {"input": "x", "ref_text": "y", "ref_audio": source}),
        ("prompt_audio", {"input_text": "x", "prompt_text": "y", "prompt_audio": source}),
    ):
        path = "/api/tts" if "input_text" in body else "/v1/audio/speech"
        status, answer, _ = gateway.ask("POST", path, body)
        assert status == 400, answer
        assert answer["error"]["param"] in (key, "voice") and len(answer["error"]["message"]) < 1_000


def test_white_space_in_a_recording_takes_no_memory(gateway: Gateway) -> None:
    body = {"input": "x", "ref_text": "y", "ref_audio": "A " * 8_000_000}
    assert gateway.ask("POST", "/v1/audio/speech", body)[0] == 413
    assert psutil.Process(gateway.process.pid).memory_info().rss < 500 << 20


@pytest.mark.parametrize(
    ("content_type", "body", "status", "words"),
    [
        ("text/plain", b"", 415, "multipart/form-data"),
        ("multipart/form-data", form((FILE, b"RIFF")), 400, "boundary"),
        ("multipart/form-data; boundary=", form((FILE, b"RIFF")), 400, "form"),
        ("multipart/form-data; boundary=" + "b" * 1_000, form((FILE, b"RIFF")), 400, "form"),
        ("multipart/form-data; boundary=b; charset=nonesuch", form(('form-data; name="name"', b"\xff")), 400, ""),
        ("multipart/form-data; boundary=c", form((FILE, b"RIFF")), 400, "form"),
        ("multipart/form-data; boundary=b", b"", 400, "last boundary"),
        ("multipart/form-data; boundary=b", form((FILE, b"RIFF"), end=""), 400, "last boundary"),
        ("multipart/form-data; boundary=b", form(("form-data", b"RIFF")), 400, "form"),
        ("multipart/form-data; boundary=b", form((FILE, b"a"), (FILE, b"b")), 400, "form"),
        ("multipart/form-data; boundary=b", form(*[(FILE, b"a")] * 1_000), 400, "form"),
        ("multipart/form-data; boundary=b", form(*[('form-data; name="a"', b"a")] * 1_000), 400, "form"),
        ("multipart/form-data; boundary=b", form(('form-data; name="name"', b"a" * 100_000)), 400, "form"),
        ("multipart/form-data; boundary=b", form(('form-data; name="x"; filename="a"', b"a")), 400, "audio_sample"),
        ("multipart/form-data; boundary=b", form(*[('form-data; name="name"', b"a")] * 2), 400, "twice"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"a: b\r\n" * 20_000 + b"\r\n--b--\r\n", 400, "form"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: " + b"a" * 100_000, 400, "form"),
    ],
)
def test_a_wrong_form_is_refused(gateway: Gateway, content_type: str, body: bytes, status: int, words: str) -> None:
    answer = gateway.ask("POST", "/v1/audio/voices", body, Content_Type=content_type)
    assert answer[0] == status and words in answer[1]["error"]["message"], answer[1]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", "", " ", "a\x00b", "a" * 65, "\u202ea"]
)
def test_a_voice_s_name_is_no_path(gateway: Gateway, name: str) -> None:
    wav = io.BytesIO()
    soundfile.write(wav, [0.5, -0.5] * 24_000, 24_000, format="WAV")
    body = form(
        ('form-data; name="audio_sample"; filename="../../../tmp/evil.wav"', wav.getvalue()),
        ('form-data; name="name"', name.encode()),
        ('form-data; name="ref_text"', b"What is said."),
        ('form-data; name="consent"', b"true"),
    )
    answer = gateway.ask("POST", "/v1/audio/voices", body, Content_Type="multipart/form-data; boundary=b")
    assert (answer[0], answer[1]["error"]["param"]) == (400, "name"), answer[1]


# --- names


NAMES = (
    *(
        "..%2f..%2f..%2fetc%2fpasswd",
        "../../../etc/passwd",
        "%2e%2e/settings.py",
        "/etc/passwd",
        "vendor/../index.html",
    ),
    *("%00", "%ff%fe", "%", "a" * 4_000, "%E2%80%AE", "%0d%0aSet-Cookie:%20a=b", "<script>alert(1)</script>"),
)


@pytest.mark.parametrize(
    "path", ["/v1/audio/jobs/{}", "/v1/audio/jobs/{}/audio", "/v1/audio/voices/{}/sample", "/page/{}", "/{}"]
)
def test_a_name_in_a_path_opens_no_file_and_is_no_markup(gateway: Gateway, path: str) -> None:
    for name in NAMES:
        answer = say(gateway.port, b"GET " + path.format(name).encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.status in (400, 404) and answer.error, name
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff" and "set-cookie" not in answer.headers


def test_nothing_that_is_sent_becomes_a_header(gateway: Gateway) -> None:
    body = {"input": "x", "a\r\nSet-Cookie: a=b": 1, "\u4f60": 1, "kept": 1}
    _, _, headers = gateway.ask("POST", "/v1/audio/speech", body)
    assert headers["x-glmtts-ignored"] == "kept" and "set-cookie" not in headers
    for key in ("label", "voice", "response_format", "model"):
        answer = gateway.ask("POST", "/v1/audio/speech", {"input": "x", key: "a\r\nSet-Cookie: a=b"})
        assert "set-cookie" not in answer[2] and (answer[0] == 400 or key == "model")


@pytest.mark.parametrize("key", [b"\xff\xfe", b"a" * 129, b"\xe4\xbd\xa0"])
def test_an_idempotency_key_is_up_to_128_characters(gateway: Gateway, key: bytes) -> None:
    body = b'{"input": "x"}'
    answer = say(
        gateway.port, HEADERS + b"Idempotency-Key: " + key + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    assert answer.status == 200 or answer.error["param"] == "Idempotency-Key"


# --- ranges


@pytest.fixture(scope="module")
def job(gateway: Gateway) -> tuple[str, bytes]:
    """The path of a finished job's audio, and its file."""
    _, job, _ = gateway.ask("POST", "/v1/audio/jobs", {"input": TEXT, "response_format": "wav"})
    path = f"/v1/audio/jobs/{job['id']}/audio"
    return path, gateway.ask("GET", path)[1]


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-", 206, slice(0, None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=-1", 206, slice(-1, None)),
        ("bytes=-99999999", 206, slice(0, None)),
        ("bytes=10-99999999", 206, slice(10, None)),
        (" bytes=5-9 ", 206, slice(5, 10)),
        ("bytes=-0", 416, None),
        ("bytes=99999999-", 416, None),
        # Several, impossible and unknown ones may be answered with the whole.
        ("bytes=9-5", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=--1", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("bytes=" + ",".join(["0-"] * 5_000), 200, slice(None)),
        ("bytes=" + "9" * 10_000 + "-", 200, slice(None)),
        ("bytes=0-" + "9" * 10_000, 200, slice(None)),
        ("bytes=\u00b2-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("", 200, slice(None)),
    ],
)
def test_a_range_of_every_kind(
    gateway: Gateway, job: tuple[str, bytes], asked: str, status: int, part: slice | None
) -> None:
    path, file = job
    answer = gateway.ask("GET", path, Range=asked)
    assert answer[0] == status, answer
    if part is None:
        assert answer[2]["content-range"] == f"bytes */{len(file)}"
        return
    assert answer[1] == file[part]
    if status == 206:
        first, end, _ = part.indices(len(file))
        assert answer[2]["content-range"] == f"bytes {first}-{end - 1}/{len(file)}"


def test_a_range_of_another_file_is_the_whole(gateway: Gateway, job: tuple[str, bytes]) -> None:
    path, file = job
    tag = gateway.ask("GET", path)[2]["etag"]
    assert gateway.ask("GET", path, Range="bytes=0-9", If_Range=tag)[1] == file[:10]
    assert gateway.ask("GET", path, Range="bytes=0-9", If_Range='"other"')[1] == file
