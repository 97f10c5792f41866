"""Who may connect by TCP: the address, the daemon's key and the clients' keys, read from the configuration's files.

What is not encrypted never listens beyond this machine, and never by accident: where the key's file is named or there,
every connection is encrypted, or the daemon does not start.
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
    """Where to listen: a numeric address, and a port (0: any free one)."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether it is one of IPv6; ``::`` takes connections of both."""
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def endpoint(self) -> str:
        """As ZeroMQ writes it."""
        return f"tcp://[{self.host}]:{self.port}" if self.is_ipv6 else f"tcp://{self.host}:{self.port}"


class Files(Struct, frozen=True):
    """The files of the keys; those that the configuration does not name need not be there."""

    server_key: Path
    authorised_keys: Path
    server_key_named: bool
    authorised_keys_named: bool


class Access(Struct, frozen=True):
    """``secret``: the daemon's key, None where nothing is encrypted. ``names``: each client's name by its key."""

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
            f"{host[:60]!r} is no IP address; a name may come to mean another one, so write the address itself "
            '("0.0.0.0" for all of IPv4, "[::]" for all)'
        ) from None
    return Address(str(address), int(match[3]))


def files(tcp: TcpSettings, state_dir: Path) -> Files:
    """Where the keys are."""
    folder = state_dir / "keys"
    return Files(
        server_key=Path(tcp.server_key) if tcp.server_key else folder / "server.key",
        authorised_keys=Path(tcp.authorised_keys) if tcp.authorised_keys else folder / "authorised_keys",
        server_key_named=bool(tcp.server_key),
        authorised_keys_named=bool(tcp.authorised_keys),
    )


def load(tcp: TcpSettings, state_dir: Path) -> Access | None:
    """Read the files; None where nothing is to listen. Raises KeyProblem with a line for each problem."""
    if not tcp.listen:
        return None
    address, where = parse_listen(tcp.listen), files(tcp, state_dir)
    problems: list[str] = []
    secret: str | None = None
    names: dict[str, str] = {}
    try:
        secret = _server_key(address, where)
    except KeyProblem as problem:
        problems.append(f"tcp.server_key: {problem}")
    if secret is not None or where.authorised_keys_named:
        try:
            names = {entry.key: entry.name for entry in authorised_keys.read(where.authorised_keys)}
        except FileNotFoundError:
            # Nobody may connect then, which is safe; a file that was named is meant to be there.
            if where.authorised_keys_named:
                hint = "make it with glmttsctl key add NAME PUBLICKEY"
                problems.append(f"tcp.authorised_keys: {where.authorised_keys}: there is no such file; {hint}")
        except KeyProblem as problem:
            problems += [f"tcp.authorised_keys: {line}" for line in str(problem).splitlines()]
    if problems:
        raise KeyProblem("\n".join(problems))
    return Access(address, secret, names, where.authorised_keys)


def _server_key(address: Address, where: Files) -> str | None:
    path = where.server_key
    try:
        there = path.lstat() is not None
    except FileNotFoundError:
        there = False
    except OSError as error:
        raise KeyProblem(f"{path}: the secret key can't be read: {(error.strerror or str(error)).lower()}") from None
    if there:
        return keys.read(path, "secret")
    if where.server_key_named:
        raise KeyProblem(f"{path}: there is no such file; make it with glmttsctl key server")
    if address.is_loopback:
        return None
    raise KeyProblem(
        f"{path}: there is no such file, and {address.endpoint} can be reached from other machines, where nothing may "
        "go unencrypted; make the key with glmttsctl key server, or listen on 127.0.0.1"
    )
