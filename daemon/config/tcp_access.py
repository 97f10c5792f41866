"""Access by TCP: the address, the daemon's key and the clients' keys, read from the files that the configuration names.

Without encryption the daemon never listens beyond this machine. If the key's file is named or exists, every connection
is encrypted, or the daemon does not start.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from msgspec import Struct

from glmtts.protocol import authorised_keys, keys
from glmtts.protocol.keys import KeyProblem

from ..core.settings import TcpSettings

_LISTEN = re.compile(r"(?:tcp://)?(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/]+)):([0-9]{1,20})")

_LAST_PORT = 65_535


class Address(Struct, frozen=True):
    """A numeric address, and a port (0: any free one)."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address; ``::`` takes connections of IPv4 too."""
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def endpoint(self) -> str:
        """As ZeroMQ writes it."""
        return f"tcp://[{self.host}]:{self.port}" if self.is_ipv6 else f"tcp://{self.host}:{self.port}"


class Access(Struct, frozen=True):
    """``secret`` is the daemon's key, None without encryption; ``names`` has each client's name by its key."""

    address: Address
    secret: str | None
    names: dict[str, str]
    authorised_keys: Path


def parse_listen(text: str) -> Address:
    """The address that ``[tcp] listen`` names. Raises ValueError saying what is expected."""
    match = _LISTEN.fullmatch(text)
    if match is None:
        raise ValueError(
            f'expected an address and a port such as "127.0.0.1:5555", "0.0.0.0:5555" or "[::]:5555", got {text[:60]!r}'
        )
    if int(match[3]) > _LAST_PORT:
        raise ValueError(
            f"port {match[3]} of {text[:60]!r} is out of range: ports go from 1 to {_LAST_PORT} (0: any free one)"
        )
    host = match[1] or match[2]
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{host[:60]!r} is not an IP address; the address of a name can change, so write the address itself "
            '("0.0.0.0" for all of IPv4, "[::]" for all)'
        ) from None
    return Address(str(address), int(match[3]))


def key_files(tcp: TcpSettings, state_dir: Path) -> tuple[Path, Path]:
    """The files of the daemon's key and of the clients' keys; they must exist only if the configuration names them."""
    folder = state_dir / "keys"
    return Path(tcp.server_key or folder / "server.key"), Path(tcp.authorised_keys or folder / "authorised_keys")


def load(tcp: TcpSettings, state_dir: Path) -> Access | None:
    """Read the key files; None where nothing listens. Raises KeyProblem with a line for each problem."""
    if not tcp.listen:
        return None
    address = parse_listen(tcp.listen)
    server, clients = key_files(tcp, state_dir)
    problems: list[str] = []
    secret: str | None = None
    names: dict[str, str] = {}
    try:
        secret = _server_key(address, server, is_named=bool(tcp.server_key))
    except KeyProblem as problem:
        problems.append(f"tcp.server_key: {problem}")
    if secret is not None or tcp.authorised_keys:
        try:
            names = {entry.key: entry.name for entry in authorised_keys.read(clients)}
        except FileNotFoundError:
            # Without the file no client may connect, which is safe; a file that is named is meant to exist.
            if tcp.authorised_keys:
                remedy = "make it with glmttsctl key add NAME PUBLICKEY"
                problems.append(f"tcp.authorised_keys: {clients}: there is no such file; {remedy}")
        except KeyProblem as problem:
            problems += [f"tcp.authorised_keys: {line}" for line in str(problem).splitlines()]
    if problems:
        raise KeyProblem("\n".join(problems))
    return Access(address, secret, names, clients)


def _server_key(address: Address, path: Path, *, is_named: bool) -> str | None:
    try:
        path.lstat()
    except FileNotFoundError:
        if is_named:
            raise KeyProblem(f"{path}: there is no such file; make it with glmttsctl key server") from None
        if address.is_loopback:
            return None
        raise KeyProblem(
            f"{path}: there is no such file, and {address.endpoint} can be reached from other machines, where nothing "
            "may go unencrypted; make the key with glmttsctl key server, or listen on 127.0.0.1"
        ) from None
    except OSError as error:
        raise KeyProblem(f"{path}: the secret key can't be read: {(error.strerror or str(error)).lower()}") from None
    return keys.read(path, "secret")
