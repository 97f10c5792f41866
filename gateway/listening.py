"""Where the gateway listens: the addresses of its configuration, and the sockets there."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from msgspec import Struct

_LOCALHOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Listen(Struct, frozen=True):
    """Where to listen: ``host`` and ``port``, or the ``path`` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return bool(self.path) or self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def parse_listen(listen: str) -> Listen:
    """Read ``address:port``, ``[address]:port`` or the absolute path of a unix socket. Raises ValueError."""
    if listen.startswith("/"):
        return Listen(path=listen)
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not colon or not 0 <= number <= 65_535:
        raise ValueError(
            f'{listen!r} is no address; use "127.0.0.1:8080" for programs on this machine, "0.0.0.0:8080" or '
            '"[::]:8080" for others too, or the absolute path of a unix socket'
        )
    return Listen(host=host, port=number)


def bind(listen: Listen) -> list[socket.socket]:
    """Sockets that are bound there. Raises OSError."""
    if listen.path:
        return [_bind_path(listen.path)]
    if listen.host != "localhost":
        return [_bind_address(socket.AF_INET6 if ":" in listen.host else socket.AF_INET, listen.host, listen.port)]
    bound = [_bind_address(socket.AF_INET, _LOCALHOST[socket.AF_INET], listen.port)]
    # A machine without IPv6 serves all the same.
    with contextlib.suppress(OSError):
        bound.append(_bind_address(socket.AF_INET6, _LOCALHOST[socket.AF_INET6], bound[0].getsockname()[1]))
    return bound


def _bind_address(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _bind_path(path: str) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as probe:
        code = probe.connect_ex(path)
    if code in (0, errno.EAGAIN):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    with contextlib.suppress(FileNotFoundError):
        # A gateway that was killed has left it.
        if stat.S_ISSOCK(Path(path).lstat().st_mode):
            Path(path).unlink()
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(path)
        # Its folder says who may connect.
        Path(path).chmod(0o666)
    except OSError:
        made.close()
        raise
    return made


def problem(error: OSError, listen: Listen) -> str:
    """Why :func:`bind` failed, and what to do."""
    match error.errno:
        case errno.EADDRINUSE if listen.path:
            return "another program listens at this socket. Stop it, or choose another path"
        case errno.EADDRINUSE:
            return f"another program has port {listen.port} ('ss -ltnp' names it). Stop it, or choose another port"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address ('ip address' lists them)"
        case errno.EACCES if not listen.path:
            return (
                f"this user may not open port {listen.port}. Choose one from 1024 on, or let systemd open it "
                "(glmttsctl install-service --gateway)"
            )
    return f"{error.strerror or error}"
