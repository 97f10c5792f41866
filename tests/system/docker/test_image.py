"""The image does what docs/operations.md says of it, under a real Docker engine."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest

from .conftest import IMAGE
from .engine import Contained, Engine

# The first one waits until the image is built.
pytestmark = pytest.mark.timeout(120, func_only=True)

FAULT = """
[engine]
name = "fault"
warmup_text = "a"
[workers]
gpus = "none"
[limits]
rate = ""
[audio]
outputs = "/srv/speech"
"""

Run = Callable[..., Contained]


def ready(container: Contained) -> bool:
    return container.run("glmttsctl", "health", check=False).returncode == 0


def beside(engine: Engine, *command: str, user: str = "10001:10001") -> subprocess.CompletedProcess[str]:
    """`glmttsctl` in another container that has the sockets' volume."""
    options = ("--rm", "--network=none", f"--user={user}", "--volume=sockets:/run/glmtts", "--entrypoint=glmttsctl")
    return engine.run("run", *options, IMAGE, *command, check=False)


def test_it_speaks_as_the_compose_file_runs_it_and_is_healthy(run: Run) -> None:
    container = run("--health-interval=1s", "--health-start-period=1s")
    container.until(lambda: container.inspect()["Health"]["Status"] == "healthy", "Docker calls it healthy")
    said = container.run("glmttsctl", "say", "今天天气不错", "-o", "/srv/speech/a.wav")
    assert "of speech in /srv/speech/a.wav" in said.stderr
    first, *others = container.processes()
    assert "glmttsd" in first and len(others) == 2
    assert container.run("id", "-u").stdout.strip() == "10001"
    doctor = container.run("glmttsctl", "doctor")
    assert "0 warnings, 0 wrong" in doctor.stdout, doctor.stdout


def test_a_daemon_that_never_gets_ready_is_unhealthy(run: Run) -> None:
    configuration = FAULT + '[engine.fault]\nstart = "crash"\n'
    container = run("--health-interval=1s", "--health-start-period=1s", configuration=configuration)
    container.until(lambda: container.inspect()["Health"]["Status"] == "unhealthy", "Docker calls it unhealthy")
    assert "ready: no" in container.inspect()["Health"]["Log"][-1]["Output"]


def test_a_stop_lets_running_jobs_finish(run: Run, engine: Engine) -> None:
    container = run(configuration=FAULT)
    container.until(lambda: ready(container), "it is ready")
    said: list[subprocess.CompletedProcess[str]] = []
    # In a container of its own: what runs in the daemon's ends with it, before it can say that it is done.
    speak = ["say", "long", "--option", "seconds=3", "--option", "rtf=1", "-o", "/tmp/a.wav"]
    client = threading.Thread(target=lambda: said.append(beside(engine, *speak)))
    client.start()
    container.until(lambda: '"running": 1' in container.run("glmttsctl", "status", "--json").stdout, "it is spoken")
    engine.run("stop", container.id)
    client.join(30)
    assert said[0].returncode == 0 and "3.00 s of speech" in said[0].stderr
    assert container.inspect()["ExitCode"] == 0


def test_a_durable_job_is_finished_after_the_container_was_killed(run: Run, engine: Engine) -> None:
    container = run(configuration=FAULT)
    container.until(lambda: ready(container), "it is ready")
    program = (
        "from glmtts.client import Client\nwith Client(timeout=30) as client:\n"
        "    print(client.submit('durable', priority='batch', options={'seconds': 2.0, 'rtf': 1.0}).id)"
    )
    job = container.run("/opt/glmtts/bin/python", "-c", program).stdout.strip()
    engine.run("kill", container.id)
    engine.run("start", container.id)
    container.until(lambda: ready(container), "it is ready again")
    assert "2.00 s of speech" in container.run("glmttsctl", "wait", job, "-o", "/tmp/a.wav").stderr


def test_when_its_memory_runs_out_the_kernel_takes_a_worker_and_not_the_daemon(run: Run, engine: Engine) -> None:
    if "No memory limit support" in engine.run("info").stderr:
        pytest.skip("this kernel bounds no container's memory")
    container = run("--memory=300m", "--memory-swap=300m", configuration=FAULT)
    container.until(lambda: ready(container), "it is ready")
    too_much = ["--option", "fault=leak_ram", "--option", "mib=400"]
    refused = container.run("glmttsctl", "say", "a", *too_much, "-o", "/tmp/a.wav", check=False)
    assert refused.returncode == 4 and "the host ran out of memory" in refused.stderr
    container.run("glmttsctl", "say", "b", "-o", "/tmp/b.wav")
    state = container.inspect()
    assert state["Running"] and not state["OOMKilled"] and "cause=host_oom" in container.log()


def test_other_containers_speak_through_the_volume_of_the_sockets_by_their_group(run: Run, engine: Engine) -> None:
    container = run()
    container.until(lambda: ready(container), "it is ready")
    for user, code in (("4242:10001", 0), ("4242:4242", 1)):
        said = beside(engine, "say", "hello", "-o", "/tmp/a.wav", user=user)
        assert said.returncode == code, said.stderr


#: Prints how speech over HTTP begins.
ASKS = (
    "import urllib.request\n"
    'body = b\'{"input": "Hello.", "response_format": "wav"}\'\n'
    "print(urllib.request.urlopen('http://127.0.0.1:8080/v1/audio/speech', body, timeout=30).read()[:4].decode())"
)


def test_the_gateway_serves_from_a_container_and_a_user_of_its_own(run: Run, engine: Engine) -> None:
    gateway = run("--health-interval=1s", "--health-start-period=1s", service="gateway")
    gateway.until(lambda: gateway.inspect()["Health"]["Status"] == "healthy", "Docker calls it healthy")
    assert "HTTP Error 503" in gateway.run("python", "-c", ASKS, check=False).stderr, "there is no daemon yet"
    daemon = run()
    daemon.until(lambda: ready(daemon), "it is ready")
    gateway.until(lambda: gateway.run("python", "-c", ASKS, check=False).stdout == "RIFF\n", "it has found the daemon")
    assert '"client":"uid:10002/ip:127.0.0.1"' in daemon.log()
    engine.run("stop", gateway.id)
    assert gateway.inspect()["ExitCode"] == 0, gateway.log()
