"""deploy/gradio/app.py with Gradio's own client: programs written for upstream's page work unchanged.

Gradio is installed once, into a folder of its own beside the virtual environment: a minute, and 350 MB.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from glmtts.client import Client

from ..process.conftest import Daemon

APP = Path(__file__).resolve().parents[2] / "deploy/gradio/app.py"
_INSTALL_S = 400

pytestmark = pytest.mark.timeout(_INSTALL_S + 60)

#: A program for upstream's page. It prints what it got as JSON, and the words of the page while it waited.
PROGRAM = """
import json, os, sys, time
from gradio_client import Client, handle_file
url, recording, words, text, leaves = sys.argv[1:]
client = Client(url, verbose=False)
job = client.submit(
    prompt_text=words, prompt_audio_path=handle_file(recording), input_text=text, seed=42, sample_rate=24000,
    use_cache=True, api_name="/run_inference",
)
said = []
while not job.done():
    for unit in job.status().progress_data or ():
        if unit.desc not in said:
            said.append(unit.desc)
            print(json.dumps(unit.desc), flush=True)
            if leaves and leaves in unit.desc:
                os._exit(0)  # as a browser that is closed: sys.exit() waits for the job
    time.sleep(0.02)
try:
    names = sorted(client.view_api(print_info=False, return_format="dict")["named_endpoints"])
    print(json.dumps({"file": job.result(), "names": names, "memory": client.predict(api_name="/clear_memory")}))
except Exception as error:
    print(json.dumps({"error": str(error)}))
"""

Program = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder with Gradio in it."""
    folder = Path(sys.prefix) / "gradio"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / ".has-gradio-6"
        if not stamp.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run(
                [*pip, "--target", folder, "gradio>=6,<7"],
                capture_output=True,
                text=True,
                timeout=_INSTALL_S,
                check=False,
            )
            if done.returncode:
                pytest.skip(f"Gradio can't be installed here: {done.stderr[-1_000:]}")
            stamp.touch()
    return folder


@pytest.fixture(scope="module")
def environment(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "BROWSER": "true"}
    return os.environ | quiet | {"PYTHONPATH": str(packages), "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("files"))}


@pytest.fixture(scope="module")
def page(daemon: Daemon, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, before a daemon with one worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    command = [sys.executable, str(APP), "--server_name=127.0.0.1", f"--server_port={port}"]
    command += [f"--endpoint={daemon.endpoint}"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            deadline = time.monotonic() + 60
            while "Running on" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            process.terminate()


@pytest.fixture
def program(page: str, environment: dict[str, str], tmp_path: Path) -> Program:
    recording = tmp_path / "anna.wav"
    soundfile.write(recording, 0.3 * np.sin(np.arange(48_000) / 20), 24_000)

    def run(text: str, words: str = "What is said.", leaves: str = "") -> list[Any]:
        arguments = [page, str(recording), words, text, leaves]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            capture_output=True, text=True, env=environment, timeout=45, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_program_for_upstream_s_page_works_unchanged(program: Program, daemon: Daemon) -> None:
    answer = program("Hello.")[-1]
    assert answer["names"] == ["/clear_memory", "/run_inference"] and "nothing to clear" in answer["memory"]
    samples, rate = soundfile.read(answer["file"])
    assert rate == 24_000 and len(samples) > 1_000
    # Each visitor is a customer.
    assert "/ip:127.0.0.1" in daemon.log()


def test_a_wait_shows_the_place_in_the_queue_and_a_closed_page_cancels_its_job(
    program: Program, daemon: Daemon
) -> None:
    # Longer than the program takes to start, and of the same customer: the jobs of others take turns with this one.
    slow = {"fault": "audio", "seconds": 60.0, "rtf": 1.0, "segments": 60}
    with Client(daemon.endpoint, timeout=30) as client:
        jobs = [client.submit("before", options=slow, on_behalf_of="ip:127.0.0.1") for _ in range(2)]
        try:
            said = program("Hello.", leaves="ahead of you")
            assert "1 ahead of you, about" in said[0], said
            daemon.until(lambda: "code=cancelled" in daemon.log(), "the daemon knows that the page was closed")
        finally:
            for job in jobs:
                client.cancel(job, on_behalf_of="ip:127.0.0.1")


def test_errors_are_in_words(program: Program) -> None:
    assert "what is said in the prompt audio" in program("Hello.", words="")[-1]["error"]
    assert "5000" in program("x" * 6_000)[-1]["error"].replace(",", "")
