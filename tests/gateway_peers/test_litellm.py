"""LiteLLM's proxy before the gateway, unmodified: its ``/v1/audio/speech`` is the gateway's.

It is installed once, into a virtual environment beside this one: some minutes, and 750 MB.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import soundfile

from ..process.conftest import Daemon
from ..support.gateways import Gateway, keys_for

_INSTALL_S = 600
KEY = "sk-a-key-of-the-proxy-for-the-tests-0123456789"

pytestmark = pytest.mark.timeout(_INSTALL_S + 200)


@pytest.fixture(scope="module")
def program() -> Path:
    folder = Path(sys.prefix) / "litellm"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / ".has-litellm-1"
        if not stamp.exists():
            venv.create(folder, with_pip=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run(
                [*pip, "litellm[proxy]>=1,<2"], capture_output=True, text=True, timeout=_INSTALL_S, check=False
            )
            if done.returncode:
                pytest.skip(f"LiteLLM can't be installed here: {done.stderr[-1_000:]}")
            stamp.touch()
    return folder / "bin" / "litellm"


@pytest.fixture(scope="module")
def keyed(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, str]]:
    """A gateway that needs a key, and the key of the proxy."""
    folder = tmp_path_factory.mktemp("gateway")
    keys, headers = keys_for(folder, "litellm")
    with contextlib.closing(Gateway(daemon, folder, f'api_keys = "{keys}"\n')) as gateway:
        yield gateway, headers["litellm"]["Authorization"].removeprefix("Bearer ")


@pytest.fixture(scope="module")
def proxy(
    program: Path, keyed: tuple[Gateway, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """A client of the proxy."""
    gateway, key = keyed
    folder = tmp_path_factory.mktemp("litellm")
    config = folder / "config.yaml"
    config.write_text(
        "model_list:\n"
        + "".join(
            f"  - model_name: {name}\n    litellm_params: {{model: openai/glm-tts, api_key: {given}, "
            f"api_base: 'http://127.0.0.1:{gateway.port}/v1'}}\n"
            for name, given in (("glm-tts", key), ("wrong-key", "glm-wrong"))
        )
        + f"general_settings: {{master_key: {KEY}}}\nlitellm_settings: {{num_retries: 0}}\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DISABLE_ADMIN_UI": "True", "NO_DOCS": "True"}
    log = folder / "log"
    command = [
        str(program),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=os.environ | quiet)
    try:
        deadline = time.monotonic() + 150
        url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3_000:]
            time.sleep(0.2)
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            yield client
    finally:
        print(log.read_text()[-3_000:])
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(("asked", "kind"), [("mp3", "MP3"), ("wav", "WAV"), ("opus", "OGG")])
def test_speech_comes_through(proxy: openai.OpenAI, asked: str, kind: str) -> None:
    spoken = proxy.audio.speech.create(model="glm-tts", voice="alloy", input="你好。", response_format=asked)  # type: ignore[arg-type]
    assert soundfile.info(io.BytesIO(spoken.content)).format == kind


def test_a_refusal_keeps_its_status_and_its_reason(proxy: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        proxy.audio.speech.create(model="glm-tts", voice="nonesuch", input="Hello.")
    assert refused.value.status_code == 400 and "nonesuch" in refused.value.message
    with pytest.raises(openai.AuthenticationError):
        proxy.audio.speech.create(model="wrong-key", voice="alloy", input="Hello.")


def test_the_jobs_are_the_proxy_s_customer_s(proxy: openai.OpenAI, keyed: tuple[Gateway, str]) -> None:
    gateway, key = keyed
    before = len(gateway.ask("GET", "/v1/audio/jobs", Authorization=f"Bearer {key}")[1]["data"])
    proxy.audio.speech.create(model="glm-tts", voice="alloy", input="One more.")
    assert len(gateway.ask("GET", "/v1/audio/jobs", Authorization=f"Bearer {key}")[1]["data"]) == before + 1
