"""Metrics of a real daemon: over HTTP and by glmttsctl, equal to status, and harmless to speech."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Daemon, MakeGpus, Start

    Crowd = Callable[[int], list[socket.socket]]

GLMTTSCTL = str(Path(sys.executable).with_name("glmttsctl"))
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Every sample by its name and labels."""
    samples: Samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            samples[match[1], frozenset(_LABEL.findall(match[2] or ""))] = float(match[3])
    return samples


def port_of(daemon: Daemon) -> int:
    """The port of the metrics, from the log."""
    daemon.until(lambda: "metrics are served" in daemon.log(), "metrics are served")
    return int(re.findall(r"metrics are served port=(\d+)", daemon.log())[-1])


def fetch(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    """Status, type and text."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"] or "", response.read().decode()


def scrape(port: int) -> Samples:
    status, kind, text = fetch(port)
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    return parsed(text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def entries(daemon: Daemon, folder: str) -> int:
    """How many entries a folder of the daemon's in /proc has: its threads, its descriptors."""
    return sum(1 for _ in Path(f"/proc/{daemon.process.pid}/{folder}").iterdir())


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(workers={"max": 2}, metrics={"listen": "127.0.0.1:0"})


@pytest.fixture(scope="module")
def port(daemon: Daemon) -> int:
    return port_of(daemon)


@pytest.fixture
def crowd(port: int) -> Iterator[Crowd]:
    """Opens connections to the metrics and leaves them open until the test ends."""
    opened: list[socket.socket] = []

    def come(count: int) -> list[socket.socket]:
        # All at once: each that the full backlog turns away is tried again by the kernel a second later.
        for _ in range(count):
            connection = socket.socket()
            opened.append(connection)
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", port))
        for connection in opened:
            select.select([], [connection], [], 5)
            connection.settimeout(5)
        return opened

    yield come
    for connection in opened:
        connection.close()


def test_metrics_agree_with_status_after_a_run(start: Start) -> None:
    daemon = start(workers={"max": 2}, metrics={"listen": "127.0.0.1:0"})
    client, port = daemon.client(), port_of(daemon)
    client.speak("one", options={"seconds": 2.0})
    client.speak("two", stream=True, options={"seconds": 0.5})
    client.refused("synthesize", text="no", options={"fault": "raise"})
    client.refused("synthesize", text="no", voice="nobody")
    client.speak("durable", priority="batch")
    daemon.until(lambda: scrape(port)[("glmtts_journal_rows", frozenset())] >= 1, "the journal's row is seen")
    # A snapshot may be a quarter of a second old.
    daemon.until(lambda: value(scrape(port), "glmtts_jobs_running", **{"class": "batch"}) == 0, "all is done")
    status, samples = daemon.status(), scrape(port)
    counts, queue = status["counts"], status["queue"]
    assert value(samples, "glmtts_jobs_accepted_total") == counts["accepted"] == 4
    ended = {dict(of)["outcome"]: n for (name, of), n in samples.items() if name == "glmtts_jobs_ended_total" and n}
    assert ended == counts["ended"] == {"done": 3, "synthesis_failed": 1}
    refused = {dict(of)["code"]: n for (name, of), n in samples.items() if name == "glmtts_jobs_refused_total" and n}
    assert refused == counts["refused"] == {"voice_not_found": 1}
    for name, waiting in queue["by_class"].items():
        assert value(samples, "glmtts_jobs_waiting", **{"class": name}) == waiting == 0
    for state, count in status["workers"].items():
        if state != "total":
            assert value(samples, "glmtts_workers", state=state) == count
    assert value(samples, "glmtts_breaker_state", state=status["breaker"]) == 1
    assert value(samples, "glmtts_state", state=status["state"]) == 1
    assert value(samples, "glmtts_journal_unfinished_jobs") == status["journal"]["unfinished"] == 0
    assert value(samples, "glmtts_internal_errors_total") == status["internal_errors"] == 0
    assert value(samples, "glmtts_quarantined_contents") == status["quarantined"] == 0
    assert value(samples, "glmtts_build_info", version=status["version"], engine="fault", protocol="1",
                 python=sys.version.split()[0]) == 1  # fmt: skip
    for name, (jobs, seconds) in {"interactive": (2, 2.5), "batch": (1, None)}.items():
        for metric in ("wait", "first_audio", "duration"):
            of = {"class": name}
            assert value(samples, f"glmtts_job_{metric}_seconds_count", **of) == jobs + (
                name == "interactive" and metric == "wait"
            )
        if seconds is not None:
            assert value(samples, "glmtts_job_audio_seconds_bucket", le="2") == 3
            assert value(samples, "glmtts_job_audio_seconds_sum") >= seconds
    assert not any("uid" in str(of) or "user" in str(of) for _, of in samples), "a user is named"


def test_the_memory_and_the_deaths_of_workers_are_measured(start: Start, make_fake_gpus: MakeGpus) -> None:
    gpus = make_fake_gpus(8_000, 8_000)
    restart = {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50}
    daemon = start(
        environment=gpus.environment(),
        engine={"fault": {"vram_mib": 2_000}},
        workers={"gpus": "all", "max": 0, "restart": restart},
        metrics={"listen": "127.0.0.1:0"},
    )
    port = port_of(daemon)
    daemon.until(lambda: all(worker["vram"] for worker in daemon.workers()), "the workers' memory is known")
    gpus.xid(0, 31)
    gpus.xid(1, 79)
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.until_ready()
    daemon.control("recycle", worker="w1")
    daemon.until(lambda: sum(w["restarts"] for w in daemon.workers()) >= 2, "the second is replaced")
    daemon.until(lambda: value(scrape(port), "glmtts_gpu_xid_errors_total", gpu="1", kind="gpu"), "the Xid is seen")

    def agree() -> bool:
        samples, workers, shown = scrape(port), daemon.workers(), daemon.gpus()
        held = {
            (dict(of)["worker"], dict(of)["trust"]): n
            for (name, of), n in samples.items()
            if name == "glmtts_worker_gpu_memory_bytes"
        }
        used = [value(samples, "glmtts_gpu_memory_used_bytes", gpu=str(gpu["index"])) for gpu in shown]
        return held == {(w["name"], w["vram_trust"]): w["vram"] for w in workers} and used == [g["used"] for g in shown]

    daemon.until(agree, "metrics and workers say the same")
    samples = scrape(port)
    assert value(samples, "glmtts_worker_deaths_total", cause="crashed") == 1
    assert value(samples, "glmtts_worker_deaths_total", cause="operator") == 1
    assert value(samples, "glmtts_worker_recycles_total", reason="operator") == 1
    assert value(samples, "glmtts_worker_starts_total") == 4
    assert value(samples, "glmtts_worker_restarts_total") == 2
    assert value(samples, "glmtts_gpu_memory_total_bytes", gpu="0") == 8_000 << 20
    assert value(samples, "glmtts_gpu_xid_errors_total", gpu="0", kind="program") == 1
    assert value(samples, "glmtts_gpu_last_xid", gpu="1") == 79
    assert value(samples, "glmtts_gpu_up", gpu="1") == 1


def test_glmttsctl_prints_them_without_a_listener(start: Start) -> None:
    daemon = start()
    daemon.client().speak("hello")
    environment = os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint}
    done = subprocess.run(
        [GLMTTSCTL, "metrics"], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert value(parsed(done.stdout), "glmtts_jobs_ended_total", outcome="done") == 1
    listening = subprocess.run(["ss", "-Htlnp"], capture_output=True, text=True, check=False).stdout
    assert f"pid={daemon.process.pid}," not in listening, "it listens though that is not configured"


def test_of_two_daemons_with_one_port_the_second_speaks_alerts_and_takes_the_port_when_it_is_free(start: Start) -> None:
    first = start(metrics={"listen": "127.0.0.1:0"})
    port = port_of(first)
    second = start(metrics={"listen": f"127.0.0.1:{port}"})
    assert second.client().speak("hello")[1][:4] == b"RIFF"
    (alert,) = second.status()["alerts"]
    assert alert["name"] == "metrics" and f"127.0.0.1:{port}" in alert["message"] and "[metrics]" in alert["message"]
    first.stop()
    second.until(lambda: not second.status()["alerts"], "it has taken the port over", 30)
    assert value(scrape(port), "glmtts_jobs_accepted_total") == 1


def test_metrics_beyond_this_machine_are_served_with_a_warning(start: Start) -> None:
    daemon = start(metrics={"listen": "0.0.0.0:0"})
    assert scrape(port_of(daemon))
    daemon.until_logged("metrics are served beyond this machine")


def test_other_requests_get_the_right_status(daemon: Daemon, port: int) -> None:
    with daemon.still_serves():
        assert fetch(port, "/")[0] == 404 and "/metrics" in fetch(port, "/")[2]
        assert fetch(port, "/metrics?x=1")[0] == 200
        assert fetch(port, method="POST")[0] == 405
        assert fetch(port, method="HEAD")[::2] == (200, "")
        for sent in (
            b"\0" * 9_000,
            b"GET\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
            b"GET /metrics HTTP/9\r\n\r\n",
            b"x" * 100_000,
        ):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(sent)
                assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")


def test_a_thousand_silent_connections_stop_neither_speech_nor_metrics(daemon: Daemon, port: int, crowd: Crowd) -> None:
    threads = entries(daemon, "task")
    with daemon.still_serves():
        crowd(1_000)
        assert value(scrape(port), "glmtts_jobs_accepted_total") >= 0
        descriptors = entries(daemon, "fd")
        assert descriptors < 200
    assert entries(daemon, "task") <= threads + 1


def test_clients_that_do_not_read_the_answer_delay_no_other(daemon: Daemon, port: int, crowd: Crowd) -> None:
    with daemon.still_serves():
        for connection in crowd(8):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        for _ in range(3):
            assert scrape(port)


def test_endless_scrapes_do_not_delay_speech(daemon: Daemon, port: int) -> None:
    # The crowds of the tests before this one have left: a crowd may push a request out.
    daemon.until(lambda: entries(daemon, "fd") < 60, "no connection of an earlier test is left", 30)
    client = daemon.client()

    def pings() -> list[float]:
        times = []
        for _ in range(200):
            began = time.monotonic()
            client.ask("ping")
            times.append(time.monotonic() - began)
        return times

    scrape(port)
    before = pings()
    ended = threading.Event()

    def hammer() -> None:
        while not ended.is_set():
            scrape(port)

    hammers = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in hammers:
        thread.start()
    during = pings()
    ended.set()
    for thread in hammers:
        thread.join()
    # The hammers take a processor of their own; this rules out that each scrape blocks the loop.
    assert statistics.median(during) < 5 * statistics.median(before) + 0.01
