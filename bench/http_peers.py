"""The services that the gateway is compared with, installed into an environment of their own."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from http_streams import Connection, encode
from processes import Child

PEERS = Path(__file__).parent / "peers"
#: Where the gateway and FastAPI take a text.
SPEECH = "/v1/audio/speech"
ONE: dict[str, Any] = {"input": "Hello.", "options": {"seconds": 0.1}}


def free_port() -> int:
    """Of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether anything listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Peers:
    """The services that this is compared with, in an environment of their own."""

    def __init__(self) -> None:
        self.python = PEERS / ".venv" / "bin" / "python"
        wanted = (PEERS / "requirements.txt").read_text()
        stamp = PEERS / ".venv" / "installed"
        if not stamp.exists() or stamp.read_text() != wanted:
            print("  the peers are installed ...", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(PEERS / ".venv")], check=True)
            quiet = ["--quiet", "--disable-pip-version-check", "--requirement", str(PEERS / "requirements.txt")]
            subprocess.run([str(self.python), "-m", "pip", "install", *quiet], check=True)
            stamp.write_text(wanted)

    def versions(self) -> dict[str, str]:
        """Of what was installed."""
        code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"
        names = ["fastapi", "mosec", "uvicorn"]
        found = subprocess.run([str(self.python), "-c", code % names], capture_output=True, text=True, check=True)
        return dict(json.loads(found.stdout))

    def start(self, name: str, stack: ExitStack, folder: Path) -> Peer:
        """Start one."""
        return Peer(name, self.python, stack, folder)


class Peer:
    """One service."""

    def __init__(self, name: str, python: Path, stack: ExitStack, folder: Path) -> None:
        self.name, self.port = name, free_port()
        argv = [str(python), str(PEERS / f"{name}_peer.py")]
        argv += [str(self.port)] if name == "fastapi" else ["--address", "127.0.0.1", "--port", str(self.port)]
        argv += [] if name == "fastapi" else ["--log-level", "warning"]
        self.whole, self.stream = (SPEECH, SPEECH) if name == "fastapi" else ("/speech", "/stream")
        self.child = Child(name, argv, folder, {"PYTHONDONTWRITEBYTECODE": "1"})
        stack.callback(self.child.stop)
        self.child.wait_until(self._speaks, "the first answer", 30)

    def _speaks(self) -> bool:
        for path in (self.whole, self.stream):
            with contextlib.suppress(OSError):
                connection = Connection(self.port)
                connection.ask(encode(path, ONE))
                status = connection.finish().status
                connection.close()
                if status == 200:
                    continue
            time.sleep(0.05)
            return False
        return True

    def worker_pid(self, path: str) -> int:
        """Of the process that makes the audio of that path."""
        connection = Connection(self.port)
        connection.ask(encode(path, {"options": {"pid": True}}), keep=True)
        text = bytes(connection.finish().content).removeprefix(b"data: ").strip()
        connection.close()
        return int(text if text.isdigit() else base64.b64decode(text))

    def pids(self) -> list[int]:
        """Every process of it."""
        return [self.child.pid, *(process.pid for process in self.child.descendants())]
