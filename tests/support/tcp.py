"""A daemon's TCP endpoint, and the keys of the daemon and of its clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtts.protocol import keys

from ..process.conftest import Daemon

LOOPBACK = "127.0.0.1:0"


class Lock:
    """The keys of a daemon and of its clients, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server_file, self.authorised = folder / "server.key", folder / "authorised_keys"
        self.server_key, secret = keys.generate()
        keys.write(self.server_file, secret + "\n", mode=0o600, replace=True)
        self.pairs: dict[str, tuple[str, str]] = {}
        self.admit()

    @property
    def tcp(self) -> dict[str, str]:
        """The section of the configuration."""
        return {"listen": LOOPBACK, "server_key": str(self.server_file), "authorised_keys": str(self.authorised)}

    def admit(self, *names: str) -> None:
        """These may connect, and nobody else."""
        for name in names:
            self.pairs.setdefault(name, keys.generate())
        self.authorised.write_text("".join(f"{self.pairs[name][0]} {name} a comment\n" for name in names))

    def key(self, name: str) -> str:
        """The client's secret key."""
        return self.pairs.setdefault(name, keys.generate())[1]

    def of(self, name: str) -> dict[str, Any]:
        """What a client gives for its keys."""
        return {"server_key": self.server_key, "secret_key": self.key(name)}

    def curve(self, name: str) -> dict[str, Any]:
        """The same, as ZeroMQ's options."""
        secret = self.key(name)
        return {
            "CURVE_SERVERKEY": self.server_key.encode(),
            "CURVE_PUBLICKEY": keys.public_of(secret).encode(),
            "CURVE_SECRETKEY": secret.encode(),
        }


def by_tcp(daemon: Daemon) -> str:
    """Where it listens for TCP."""
    return str(daemon.status()["tcp"]["endpoint"])
