"""Requests of chat front ends, as their sources make them: paths, headers and bodies.

Open WebUI: ``backend/open_webui/routers/audio.py``. SillyTavern: ``src/endpoints/openai.js``. Home Assistant: sfortis'
``openai_tts``, ``openaitts_engine.py``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile

from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey

from ..process.conftest import Daemon
from ..support.gateways import Gateway


@pytest.fixture(scope="module")
def keyed(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, str]]:
    """A gateway that needs a key, and the key of a front end that names its users."""
    folder = tmp_path_factory.mktemp("keyed")
    key = api_keys.new_key()
    entry = ApiKey(name="webui", sha256=api_keys.digest(key), forwards_users=True)
    (folder / "keys.toml").write_text(api_keys.entry(entry))
    with contextlib.closing(Gateway(daemon, folder, f'api_keys = "{folder / "keys.toml"}"\n')) as gateway:
        yield gateway, key


def open_webui(
    gateway: Gateway, key: str, payload: dict[str, Any], user: str = "5b1f"
) -> tuple[int, Any, dict[str, str]]:
    """``/audio/speech``, with ENABLE_FORWARD_USER_INFO_HEADERS."""
    return gateway.ask(
        "POST",
        "/v1/audio/speech",
        payload,
        Content_Type="application/json",
        Authorization=f"Bearer {key}",
        X_OpenWebUI_User_Name="Anna%20%E5%AE%89",
        X_OpenWebUI_User_Id=user,
        X_OpenWebUI_User_Email=f"{user}@example.com",
        X_OpenWebUI_User_Role="user",
        Accept="*/*",
        Accept_Encoding="gzip, deflate, br",
        User_Agent="Python/3.11 aiohttp/3.12.15",
    )


def test_open_webui_lists_models_and_voices_without_its_key(keyed: tuple[Gateway, str]) -> None:
    gateway, _ = keyed
    status, models, _ = gateway.ask("GET", "/v1/audio/models")
    assert status == 200 and "glm-tts" in [model["id"] for model in models["models"]]
    status, voices, _ = gateway.ask("GET", "/v1/audio/voices")
    assert status == 200 and {voice["id"]: voice["name"] for voice in voices["voices"]}


def test_open_webui_speaks_for_each_of_its_users(keyed: tuple[Gateway, str], daemon: Daemon) -> None:
    gateway, key = keyed
    voice = gateway.ask("GET", "/v1/audio/voices")[1]["voices"][0]["id"]
    for chosen in (voice, "alloy"):
        payload = {"input": "今天天气不错。", "voice": chosen, "model": "tts-1"}
        status, file, _ = open_webui(gateway, key, payload)
        assert status == 200 and soundfile.info(io.BytesIO(file)).format == "MP3"
    # Parameters that its administrator adds (OPENAI_PARAMS).
    assert open_webui(gateway, key, {**payload, "speed": 1.25, "language": "zh"}, "77aa")[0] == 200
    jobs = {user: len(daemon.client().ask("jobs", on_behalf_of=f"webui/{user}")["jobs"]) for user in ("5b1f", "77aa")}
    assert jobs == {"5b1f": 2, "77aa": 1}


def test_open_webui_shows_why_it_was_refused(keyed: tuple[Gateway, str]) -> None:
    gateway, key = keyed
    status, answer, headers = open_webui(gateway, key, {"input": "x", "voice": "nonesuch", "model": "tts-1"})
    assert status == 400 and "nonesuch" in answer["error"]["message"]
    assert headers["content-type"] == "application/json"
    assert open_webui(gateway, "glm-wrong", {"input": "x", "voice": "alloy", "model": "tts-1"})[0] == 401


def test_sillytavern_without_a_key(gateway: Gateway) -> None:
    body = {"input": "Hello there.", "response_format": "mp3", "voice": "alloy", "speed": 1, "model": "tts-1"}
    headers = {"Content_Type": "application/json", "Authorization": "Bearer ", "User_Agent": "node-fetch"}
    status, file, _ = gateway.ask("POST", "/v1/audio/speech", body, **headers)
    assert status == 200 and soundfile.info(io.BytesIO(file)).format == "MP3"


def test_home_assistant(gateway: Gateway) -> None:
    body = {"model": "tts-1", "input": "The light is on.", "voice": "shimmer", "response_format": "wav", "speed": 1.0}
    for more in ({}, {"instructions": "Speak softly."}):
        status, file, _ = gateway.ask("POST", "/v1/audio/speech", body | more, User_Agent="python-requests/2.32.3")
        info = soundfile.info(io.BytesIO(file))
        assert status == 200 and info.format == "WAV" and info.frames > 0
