"""A real Prometheus that scrapes real daemons, with the rules that are shipped."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glmtts.daemon.core.monitoring.alert_table import prometheus_rules
from glmtts.daemon.core.settings import AlertSettings

from ..process.conftest import start, start_shared

__all__ = ["start", "start_shared"]

PATIENCE_S = 60.0
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "glmtts.rules.yml"

#: The daemons of these tests, and the rules, have seconds for minutes.
QUICK_ALERTS = {"window_s": 10, "for_s": 1, "response_s": 1}
QUICK_RULES = prometheus_rules(msgspec.convert(QUICK_ALERTS, AlertSettings))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Prometheus:
    """One server with a folder of its own, and a thread that notes which alerts it has fired."""

    def __init__(self, folder: Path, target: str, rules: str) -> None:
        self.port = free_port()
        (folder / "glmtts.rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
            "rule_files: [glmtts.rules.yml]\n"
            f"scrape_configs: [{{job_name: glmtts, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        #: Names of all alerts that have fired, and of those that fire now, with what they are about.
        self.fired: set[str] = set()
        self.firing: set[str] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._note)
        self._thread.start()

    def _get(self, path: str, **keys: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(keys)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[Any] | None:
        """The series of an expression now; None while Prometheus is not there."""
        try:
            return list(self._get("query", query=expr)["result"])
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(f"{expr}: {error.read().decode()}") from None
        except OSError:
            return None

    def _note(self) -> None:
        while not self._closed.wait(0.2):
            with contextlib.suppress(OSError):
                alerts = self._get("alerts")["alerts"]
                self.firing = {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}
                self.fired |= self.firing

    @staticmethod
    def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
            time.sleep(0.1)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._log.close()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    """Starts a Prometheus: ``prometheus("127.0.0.1:9464")``."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (apt-get install prometheus)")
    started: list[Prometheus] = []

    def begin(target: str, rules: str | None = None) -> Prometheus:
        server = Prometheus(tmp_path, target, RULES.read_text() if rules is None else rules)
        started.append(server)
        server.until(lambda: server.query("up") is not None, "Prometheus answers")
        return server

    yield begin
    for server in started:
        server.close()
