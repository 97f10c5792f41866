"""Voices of one's own against a real daemon: by the client library, by glmttsctl, and by OpenAI's package over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

from glmtts.client import AsyncClient, BadAudio, BadRequest, Client, Forbidden, VoiceNotFound

from ..support.gateways import Gateway, keys_for
from .conftest import Daemon, Start
from .glmttsctl import ctl


def recording(hz: float = 200.0, seconds: float = 1.5, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * 24_000)) / 24_000), 24_000, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(limits={"own_voices": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("voices")


@pytest.fixture(scope="module")
def keys(folder: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    return keys_for(folder, "carol", "dave", "erin")


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, folder: Path, keys: Any) -> Iterator[Gateway]:
    gateway = Gateway(daemon, folder, f'api_keys = "{keys[0]}"')
    yield gateway
    gateway.close()


def form(fields: dict[str, str], file: bytes | None = None, filename: str = "a.wav", boundary: str = "xx") -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if file is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="audio_sample"; filename="{filename}"\r\n'
        parts.append(head.encode() + b"Content-Type: audio/wav\r\n\r\n" + file + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


FIELDS = {"name": "me", "consent": "true", "ref_text": "what I said"}
FORM = {"content-type": "multipart/form-data; boundary=xx"}


# --- the client library


def test_a_voice_of_ones_own_is_kept_named_heard_and_removed(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "me.flac").write_bytes(recording(kind="FLAC"))
    with Client(daemon.endpoint, timeout=20) as client:
        added = client.add_voice("mine", tmp_path / "me.flac", text="what I said", language="zh", consent=True)
        assert (added.name, added.seconds, added.created > 1.6e9) == ("mine", 1.5, True)
        voice = next(voice for voice in client.voices() if voice.name == "mine")
        assert (voice.owner, voice.language, voice.sample) == ("own", "zh", True)
        by_prompt = client.speak("hello", prompt=recording(kind="FLAC"), prompt_text="what I said")
        assert client.speak("hello", voice="mine").sha256 == by_prompt.sha256
        sample = client.voice_sample("mine")
        assert (sample.format, sample.text, sample.audio) == ("flac", "what I said", recording(kind="FLAC"))
        sample.save(tmp_path / "again.flac")
        with pytest.raises(BadRequest, match="replace"):
            client.add_voice("mine", recording(), text="anew", consent=True)
        client.add_voice("mine", recording(), text="anew", consent=True, replace=True)
        assert client.voice_sample("mine").text == "anew"
        for wrong, error in (
            ({"consent": False}, BadRequest),
            ({"name": "../up"}, BadRequest),
            ({"name": "tone"}, BadRequest),
            ({"text": "…"}, BadRequest),
            ({"audio": b""}, BadAudio),
            ({"audio": recording(seconds=0.2)}, BadAudio),
            ({"audio": b"\0" * 5_000}, BadAudio),
        ):
            asked: dict[str, Any] = {"name": "other", "audio": recording(), "text": "words", "consent": True} | wrong
            with pytest.raises(error):
                client.add_voice(asked.pop("name"), asked.pop("audio"), **asked)
        client.remove_voice("mine")
        for ask in (client.remove_voice, client.voice_sample):
            with pytest.raises(VoiceNotFound):
                ask("mine")
    assert list((daemon.state / "own_voices").iterdir()) == []


def test_two_customers_voices_of_one_name_never_mix_and_survive_a_kill(daemon: Daemon) -> None:
    """Also in one worker, with jobs in turn: what it keeps of a voice goes by the recording."""

    async def spoken(client: AsyncClient) -> list[str]:
        return [
            (await client.speak("hello", voice="me", on_behalf_of=name)).sha256 for name in ("ann", "ben", "ann", "ben")
        ]

    async def before() -> list[str]:
        async with AsyncClient(daemon.endpoint, timeout=30) as client:
            for name, hz in (("ann", 200.0), ("ben", 500.0)):
                await client.add_voice("me", recording(hz), text="words", consent=True, on_behalf_of=name)
            assert {voice.owner for voice in await client.voices()} == {"shared"}
            assert (await client.voice_sample("me", on_behalf_of="ben")).audio == recording(500.0)
            with pytest.raises(VoiceNotFound):
                await client.speak("hello", voice="me", on_behalf_of="eve")
            for number in range(2):
                await client.add_voice(f"v{number}", recording(), text="words", consent=True, on_behalf_of="ann")
            with pytest.raises(Forbidden, match="own_voices"):
                await client.add_voice("v3", recording(), text="words", consent=True, on_behalf_of="ann")
            daemon.control("pause")
            await client.submit("later", voice="me", on_behalf_of="ben", durable=True, key="k")
            daemon.control("resume")
            return await spoken(client)

    async def after() -> list[str]:
        async with AsyncClient(daemon.endpoint, timeout=30) as client:
            assert len([v for v in await client.voices(on_behalf_of="ann") if v.owner == "own"]) == 3
            later = await client.speak("later", voice="me", on_behalf_of="ben", durable=True, key="k")
            assert later.sha256 == (await client.speak("later", voice="me", on_behalf_of="ben")).sha256
            await client.remove_voice("me", on_behalf_of="ann")
            assert await client.voice_sample("me", on_behalf_of="ben")
            return await spoken_by_ben(client)

    async def spoken_by_ben(client: AsyncClient) -> list[str]:
        return [(await client.speak("hello", voice="me", on_behalf_of="ben")).sha256]

    first = asyncio.run(before())
    assert first[:2] == first[2:] and first[0] != first[1]
    daemon.kill()
    daemon.restart()
    assert asyncio.run(after()) == [first[1]]


# --- HTTP


def test_openai_s_package_makes_speaks_with_and_deletes_a_voice(gateway: Gateway, keys: Any) -> None:
    headers = keys[1]
    key = headers["carol"]["Authorization"].removeprefix("Bearer ")
    with gateway.openai(key) as client:
        voice = client.audio.voices.create(
            name="carol-1",
            audio_sample=("../../etc/passwd.wav", recording(), "audio/wav"),
            consent="cons_1234",
            extra_body={"ref_text": "what I said"},
        )
        assert (voice.id, voice.object, voice.type) == ("carol-1", "audio.voice", "audio_sample")
        speech = client.audio.speech.create(model="tts-1", voice={"id": voice.id}, input="Hi.", response_format="wav")
        assert soundfile.info(io.BytesIO(speech.content)).frames
        listed = gateway.ask("GET", "/v1/audio/voices", **headers["carol"])[1]["voices"]
        assert {v["id"]: v["owner"] for v in listed}["carol-1"] == "own"
        for other in ("dave", None):
            seen = gateway.ask("GET", "/v1/audio/voices", **(headers[other] if other else {}))[1]["voices"]
            assert seen and {v["owner"] for v in seen} == {"shared"}
        status, body, about = gateway.ask("GET", "/v1/audio/voices/carol-1/sample", **headers["carol"])
        assert (status, body, about["content-type"]) == (200, recording(), "audio/wav")
        assert gateway.ask("GET", "/v1/audio/voices/carol-1/sample", **headers["dave"])[0] == 404
        assert gateway.ask("GET", "/v1/audio/voices/carol-1/sample")[0] == 401
        assert gateway.ask("DELETE", "/v1/audio/voices/carol-1", **headers["dave"])[0] == 404
        assert client.audio.voices.delete(voice.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.audio.voices.delete(voice.id)


@pytest.mark.parametrize(
    ("body", "head", "expected"),
    [
        (form({"name": "me", "consent": "true"}, recording()), {}, (400, "ref_text")),
        (form(FIELDS | {"consent": "false"}, recording()), {}, (400, "consent")),
        (form(FIELDS), {}, (400, "audio_sample")),
        (form(FIELDS | {"name": "My voice"}, recording()), {}, (400, "name")),
        (form(FIELDS | {"name": "alloy"}, recording()), {}, (400, "name")),
        (form(FIELDS | {"ref_text": "…"}, recording()), {}, (400, "ref_text")),
        (form(FIELDS | {"ref_text": "x" * 100_000}, recording()), {}, (400, None)),
        (form(FIELDS | {"type": "prompt"}, recording()), {}, (400, "type")),
        (form(FIELDS, recording()).removesuffix(b"--\r\n") + form({}, recording())[4:], {}, (400, None)),
        (form(FIELDS | {"audio_sample": "UklGR"}), {}, (400, "audio_sample")),
        (form({f"f{n}": "x" for n in range(10_000)}), {}, (400, None)),
        (form(FIELDS, b"\0\0\0\x20ftypM4A " + bytes(5_000)), {}, (400, "audio_sample")),
        (form(FIELDS, b"\x1a\x45\xdf\xa3webm" + bytes(5_000)), {}, (400, "audio_sample")),
        (form(FIELDS, bytes(17 << 20)), {}, (413, "audio_sample")),
        (form(FIELDS, bytes(33 << 20)), {}, (413, None)),
        (form(FIELDS, recording())[:-200], {}, (400, None)),
        (form(FIELDS, recording()), {"content-type": "multipart/form-data"}, (400, None)),
        (form(FIELDS, recording()), {"content-type": "multipart/form-data; boundary=" + "y" * 500}, (400, None)),
        (b"{}", {"content-type": "application/json"}, (415, None)),
        (b"", {"content-type": "multipart/form-data; boundary=xx"}, (400, None)),
    ],
)
def test_each_wrong_form_has_its_answer(
    gateway: Gateway, keys: Any, body: bytes, head: dict[str, str], expected: tuple[int, str | None]
) -> None:
    asked = gateway.ask("POST", "/v1/audio/voices", body, **(FORM | head), **keys[1]["dave"])
    assert (asked[0], asked[1]["error"]["param"]) == expected, asked
    if body[100:].count(b"ftyp") or body.count(b"webm"):
        assert "ffmpeg" in asked[1]["error"]["message"]
    assert not [
        v for v in gateway.ask("GET", "/v1/audio/voices", **keys[1]["dave"])[1]["voices"] if v["owner"] == "own"
    ]


def test_a_customer_who_fills_the_quota_gets_403(gateway: Gateway, keys: Any) -> None:
    def add(name: str) -> Any:
        return gateway.ask("POST", "/v1/audio/voices", form(FIELDS | {"name": name}, recording()), **FORM, **erin)

    erin = keys[1]["erin"]
    assert [add(f"v{number}")[0] for number in range(4)] == [200, 200, 200, 403]
    status, body, headers = add("v4")
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (403, "forbidden", "false")


# --- glmttsctl


def test_a_user_keeps_a_voice_with_glmttsctl(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "me.wav").write_bytes(recording())
    add = ("voice", "add", "me", str(tmp_path / "me.wav"), "--text", "what I said", "--own")
    refused = ctl(daemon, *add)
    assert refused.returncode == 2 and "--consent" in refused.stderr
    added = ctl(daemon, *add, "--consent")
    assert added.returncode == 0 and "you alone have" in added.stdout, added.stderr
    listed = json.loads(ctl(daemon, "voices", "--json").stdout)["voices"]
    assert {voice["name"]: voice["owner"] for voice in listed}["me"] == "own"
    assert ctl(daemon, "voice", "sample", "me", "-o", str(tmp_path / "out.wav")).returncode == 0
    assert (tmp_path / "out.wav").read_bytes() == recording()
    assert ctl(daemon, "voice", "remove", "me", "--own").returncode == 0
    assert ctl(daemon, "voice", "remove", "me", "--own").returncode == 1
