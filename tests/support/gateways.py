"""A gateway before a daemon, as tests of several kinds start it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai

from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey

if TYPE_CHECKING:
    from ..process.conftest import Daemon

GATEWAY = str(Path(sys.executable).with_name("glmtts-gateway"))


class Gateway:
    """A gateway before a daemon, at a port of its own or at the unix socket ``path``."""

    def __init__(
        self, daemon: Daemon, folder: Path, settings: str = "", through: Sequence[str] = (), path: str = ""
    ) -> None:
        self.path = path
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.log_file = folder / f"gateway-{self.port}.log"
        file = folder / f"gateway-{self.port}.toml"
        listen = path or f"127.0.0.1:{self.port}"
        file.write_text(f'[gateway]\nlisten = "{listen}"\nendpoint = "{daemon.endpoint}"\n{settings}')
        self._daemon, self._command = daemon, [*through, GATEWAY, "--config", str(file)]
        self.start()

    def start(self) -> None:
        """Start it, also after :meth:`close`, at the same port."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log)
        self._daemon.until(self._answers, "the gateway answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log_file.read_text()
        with contextlib.suppress(OSError):
            return self.ask("GET", "/livez")[0] == 200
        return False

    def connection(self) -> http.client.HTTPConnection:
        if self.path:
            return _UnixConnection(self.path, timeout=30)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """The status, the body (decoded if it is JSON) and the headers of an answer."""
        with contextlib.closing(self.connection()) as connection:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content: Any = answer.read()
            if answer.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return answer.status, content, {name.lower(): value for name, value in answer.headers.items()}

    def openai(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, **options)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def keys_for(folder: Path, *names: str) -> tuple[Path, dict[str, dict[str, str]]]:
    """A file of keys, and the header of each name."""
    file = folder / "keys.toml"
    headers: dict[str, dict[str, str]] = {}
    for name in names:
        key = api_keys.new_key()
        headers[name] = {"Authorization": f"Bearer {key}"}
        with file.open("a") as lines:
            lines.write(api_keys.entry(ApiKey(name=name, sha256=api_keys.digest(key))))
    return file, headers
