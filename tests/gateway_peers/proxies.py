"""Proxies before two gateways, with the configurations of deploy/proxies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import needs

SNIPPETS = Path(__file__).resolve().parents[2] / "deploy" / "proxies"

NGINX = """
daemon off;
user root;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/snippet;
}}
"""
CADDY = "{{\n\tadmin unix/{folder}/admin\n}}\n"


class Proxy:
    """One proxy. Of its shipped configuration the addresses alone are others."""

    file = ""
    package = ""
    listens = ""
    unix = ""

    def __init__(self, first: int, second: str) -> None:
        """``first``: the port of a gateway; ``second``: the unix socket of the other one."""
        self.program = needs(self.package, self.package)
        self._folder = tempfile.TemporaryDirectory(prefix="glmtts-proxy-", dir="/tmp")
        self.folder = Path(self._folder.name)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        text = (SNIPPETS / self.file).read_text()
        others = {
            self.listens: self.listens.replace(":80", f":{self.port}").replace(" 80", f" {self.port}"),
            "127.0.0.1:8080": f"127.0.0.1:{first}",
            "127.0.0.1:8081": self.unix + second,
        }
        for shipped, ours in others.items():
            assert text.count(shipped) == 1 or shipped == "127.0.0.1:8080", shipped
            text = text.replace(shipped, ours)
        (self.folder / "snippet").write_text(text)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                env=os.environ | {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)},
            )
        self.until(self._answers, "the proxy answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.1 200")
        return False

    @staticmethod
    def until(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def command(self) -> list[str]:
        raise NotImplementedError

    def reload(self) -> None:
        """Read the configuration again, as after a change, and end the old processes when they are done."""
        raise NotImplementedError

    def children(self) -> set[int]:
        return set(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()))

    def close(self) -> None:
        # Shown by pytest if a test has failed.
        print((self.folder / "log").read_text()[-5_000:])
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"{self.package} did not end")
        finally:
            self._folder.cleanup()


class Nginx(Proxy):
    file, package, listens, unix = "nginx.conf", "nginx", "listen 80;", "unix:"

    def command(self) -> list[str]:
        (self.folder / "conf").write_text(NGINX.format(folder=self.folder))
        return [self.program, "-c", str(self.folder / "conf"), "-e", str(self.folder / "log")]

    def reload(self) -> None:
        before = self.children()
        self.process.send_signal(signal.SIGHUP)
        self.until(lambda: self.children() - before, "nginx has a new process")


class Haproxy(Proxy):
    file, package, listens, unix = "haproxy.cfg", "haproxy", "bind :80", "unix@"

    def command(self) -> list[str]:
        # The master process reloads, as under Debian's unit.
        return [self.program, "-W", "-f", str(self.folder / "snippet")]

    def reload(self) -> None:
        before = self.children()
        self.process.send_signal(signal.SIGUSR2)
        self.until(lambda: self.children() - before, "HAProxy has a new process")


class Caddy(Proxy):
    file, package, listens, unix = "Caddyfile", "caddy", "\n:80 {", "unix/"

    def command(self) -> list[str]:
        snippet = self.folder / "snippet"
        snippet.write_text(CADDY.format(folder=self.folder) + snippet.read_text())
        return [self.program, "run", "--adapter", "caddyfile", "--config", str(snippet)]

    def reload(self) -> None:
        # With --force: the file is the same.
        command = ["reload", "--force", "--adapter", "caddyfile", "--config", str(self.folder / "snippet")]
        subprocess.run([self.program, *command], check=True, capture_output=True, timeout=30)


PROXIES: dict[str, type[Proxy]] = {"nginx": Nginx, "haproxy": Haproxy, "caddy": Caddy}
