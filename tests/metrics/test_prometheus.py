"""A real Prometheus scrapes a real daemon: its alerts come and go with the daemon's own, and every panel has data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from .conftest import DEPLOY, QUICK_ALERTS, QUICK_RULES, free_port

#: No pause between crashes, and no breaker: it is tested by itself.
RESTART: dict[str, Any] = {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 500}
LEAK: dict[str, Any] = {"fault": "leak_vram", "mib": 10, "seconds": 0.1, "rtf": 0.5}


class Watcher:
    """Hears the events socket in a thread: which alerts were raised, and which were cleared after that."""

    def __init__(self, daemon: Any) -> None:
        self.raised: set[str] = set()
        self.cleared: set[str] = set()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(daemon.events_endpoint)
        self._socket.subscribe("alert.")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._closed.is_set():
            if self._socket.poll(100):
                topic, packed = self._socket.recv_multipart()
                name = topic.decode().removeprefix("alert.").partition(".")[0]
                (self.raised if msgpack.unpackb(packed)["state"] == "raised" else self.cleared).add(name)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def watch() -> Iterator[Callable[[Any], Watcher]]:
    with contextlib.ExitStack() as stack:
        yield lambda daemon: stack.enter_context(contextlib.closing(Watcher(daemon)))


@pytest.mark.timeout(170)
def test_alerts_come_and_go_with_their_trouble_in_both_places(
    start: Any, make_fake_gpus: Any, prometheus: Any, watch: Any
) -> None:
    gpus = make_fake_gpus(24_576, 24_576)
    port = free_port()
    daemon = start(
        environment=gpus.environment(),
        engine={"fault": {"vram_mib": 2_000}},
        workers={
            "gpus": "all",
            "max": 0,
            "restart": RESTART,
            "recycle": {"leak_min_mib": 16, "leak_horizon_jobs": 0},
        },
        metrics={"listen": f"127.0.0.1:{port}"},
        alerts=QUICK_ALERTS,
    )
    heard, server = watch(daemon), prometheus(f"127.0.0.1:{port}", QUICK_RULES)
    expected = {
        *("queue_long", "responses_slow", "slower_than_real_time", "errors_many", "crash_loop"),
        *("gpu_memory_high", "memory_trend", "gpu_xid"),
    }
    server.until(lambda: server.query("glmtts_build_info"), "the daemon is scraped")
    client = daemon.client()
    # Two texts of which workers die, each twice, and jobs that fail.
    for number in range(2):
        client.refused("synthesize", text=f"deadly {number}", options={"fault": "segv"})
    for number in range(3):
        client.refused("synthesize", text=f"wrong {number}", options={"fault": "raise"})
    daemon.until(lambda: {"crash_loop", "errors_many"} <= heard.raised, "crashes and errors are told")
    daemon.until_ready()
    # Speech that is slower than listening, and a queue behind it.
    daemon.control("pause")
    slow = [client.send("synthesize", text=f"slow {n}", options={"seconds": 1.0, "rtf": 1.4}) for n in range(6)]
    gpus.xid(0, 31)
    gpus.xid(0, 79)
    gpus.take(1, 21_500)
    daemon.until(lambda: {"queue_long", "gpu_memory_high", "gpu_xid"} <= heard.raised, "what lasts is told")
    server.until(lambda: {"queue_long", "gpu_memory_high", "gpu_xid"} <= server.fired, "in Prometheus as well")
    gpus.take(1, 0)
    daemon.control("resume")
    for id in slow:
        assert client.all(id)[0][-1]["event"] == "done"
    daemon.until(lambda: {"responses_slow", "slower_than_real_time"} <= heard.raised, "slow speech is told")
    jobs = 0
    while not ("memory_trend" in heard.raised and "memory_trend" in server.fired):
        client.speak(f"leaky {jobs}", options=LEAK)
        jobs += 1
        assert jobs < 900, "the leak is not seen"
    for worker in daemon.workers():
        os.kill(worker["pid"], signal.SIGKILL)
    daemon.until(lambda: not daemon.status()["alerts"], "all is over", 60)
    server.until(lambda: not server.firing, "in Prometheus as well")
    daemon.until(lambda: expected <= heard.raised and expected <= heard.cleared, "each end is told")
    # On a busy machine half a second is too short for a scrape, and two seconds are for a new process.
    raised, fired = (told - {"daemon_absent", "no_worker_ready"} for told in (heard.raised, server.fired))
    assert raised == fired == expected, "one of the two has told of something that the other has not"


@pytest.mark.timeout(150)
def test_a_daemon_that_nobody_can_speak_with_is_told_of_and_one_that_is_gone(
    start: Any, prometheus: Any, watch: Any, tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -e {mended} ] || exit 5\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    port = free_port()
    daemon = start(
        wait=False,
        engine={"python": str(python)},
        workers={"restart": {"backoff_initial_s": 0.05, "backoff_max_s": 0.5, "breaker_failures": 3}},
        metrics={"listen": f"127.0.0.1:{port}"},
        alerts=QUICK_ALERTS,
    )
    server = prometheus(f"127.0.0.1:{port}", QUICK_RULES)
    expected = {"breaker_open", "unavailable", "no_worker_ready", "crash_loop"}
    daemon.until(daemon.control_is_open, "it serves")
    heard = watch(daemon)
    daemon.until(lambda: expected <= {alert["name"] for alert in daemon.status()["alerts"]}, "it is told")
    server.until(lambda: expected <= server.firing, "in Prometheus as well")
    mended.touch()
    daemon.until_ready()
    daemon.client().speak("hello")
    daemon.until(lambda: not daemon.status()["alerts"], "all is over", 60)
    server.until(lambda: not server.firing, "in Prometheus as well")
    daemon.until(lambda: expected <= heard.cleared, "its end is told")
    daemon.kill()
    server.until(lambda: server.firing == {"daemon_absent"}, "who is gone is missed")
    daemon.restart()
    server.until(lambda: not server.firing, "it is back")


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard with its panel's title."""
    dashboard = json.loads((DEPLOY / "grafana" / "glmtts.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def as_grafana_asks(expr: str) -> str:
    return expr.replace("$__rate_interval", "10s").replace("$instance", ".*")


@pytest.mark.timeout(150)
def test_every_panel_of_the_dashboard_has_data(start: Any, fake_gpus: Any, prometheus: Any) -> None:
    port = free_port()
    daemon = start(
        environment=fake_gpus.environment(),
        engine={"fault": {"vram_mib": 2_000}},
        workers={"gpus": "all", "max": 0, "restart": RESTART},
        metrics={"listen": f"127.0.0.1:{port}"},
    )
    server = prometheus(f"127.0.0.1:{port}")
    client = daemon.client()
    wanted = dict.fromkeys(as_grafana_asks(expr) for _, expr in expressions())
    assert len(wanted) > 40

    def speak() -> None:
        for number in range(4):
            client.speak(f"sentence {number}", priority=("interactive", "batch")[number % 2], options={"rtf": 0.1})
        client.refused("synthesize", text="no", voice="nobody")

    def missing() -> list[str]:
        return [expr for expr in wanted if not has_data(server.query(expr))]

    def all_there() -> bool:
        speak()
        return not missing()

    speak()
    # Somebody has to wait for an estimate to be wrong.
    for id in [client.send("synthesize", text=f"wait {n}", options={"seconds": 0.5, "rtf": 0.8}) for n in range(4)]:
        client.all(id)
    try:
        server.until(all_there, "every query has data", 40)
    except AssertionError:
        raise AssertionError(f"queries without data: {missing()}") from None


def has_data(series: list[Any] | None) -> bool:
    return series is not None and any(sample["value"][1] != "NaN" for sample in series)
