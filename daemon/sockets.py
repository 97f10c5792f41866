"""The listening sockets: those in the runtime folder, made by us with their modes and handed to ZeroMQ as descriptors,
and the one for TCP.

ZeroMQ's own bind makes a socket that everybody may open, and takes a path over from a daemon that still listens on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

from glmtts.protocol.endpoints import CONTROL, EVENTS, MAX_PATH_BYTES, REQUESTS, WORKERS

from .tcp_access import Address

_BACKLOG = 4096

#: ZeroMQ's threads where there is TCP; and as bits of ZMQ_AFFINITY the one for the sockets of this machine, and the one
#: for TCP alone: strangers' handshakes, and encryption, don't keep local clients waiting.
IO_THREADS = 2
LOCAL_THREAD, TCP_THREAD = 0b01, 0b10


class RuntimeDirError(Exception):
    """The runtime folder, or the TCP address, can't be used; the message says why, and what to do."""


class RuntimeDir:
    """The runtime folder, held under a lock as long as the daemon lives: two daemons can't share one."""

    def __init__(self, path: Path) -> None:
        """Make the folder if it is not there, check whose it is, and lock it. Raises RuntimeDirError."""
        self.path = path
        longest = max(len(os.fsencode(path / name)) for name in (REQUESTS, CONTROL, EVENTS, WORKERS))
        if longest > MAX_PATH_BYTES:
            raise RuntimeDirError(
                f"{path}: too long a path: a socket's path has at most {MAX_PATH_BYTES} bytes. Set a shorter one in "
                "[daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
            )
        try:
            # Others may look up the requests socket in it; what they may open, the sockets' own modes say. The one in
            # /tmp, where anybody may make folders, is ours alone.
            private = path == Path(f"/tmp/glmtts-{os.geteuid()}")
            path.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
            status = path.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise RuntimeDirError(f"{path}: not a folder")
            if status.st_uid != os.geteuid():
                raise RuntimeDirError(
                    f"{path}: belongs to user {status.st_uid}, who could put other sockets in the place of ours. "
                    "Remove it, or set another folder in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
                )
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RuntimeDirError(
                f"{error.filename or path}: {error.strerror}. Set a folder that this user can write to in "
                "[daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise RuntimeDirError(
                f"{path}: another daemon (pid {holder}) serves here. Stop it with 'glmttsctl stop', or give this one a "
                "runtime folder of its own."
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._listening: list[Path] = []

    def endpoint(self, name: str) -> str:
        """The ZeroMQ endpoint of a socket in the folder."""
        return f"ipc://{self.path / name}"

    def listen(self, name: str, mode: int, group: str = "") -> int:
        """Make a listening socket and return its descriptor. Raises RuntimeDirError."""
        path = self.path / name
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # What lies there is of a dead daemon: we hold the lock.
            path.unlink(missing_ok=True)
            listener.bind(os.fspath(path))
            if group:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            # Before listen(): until then nobody can connect, whatever the mode.
            path.chmod(mode)
            listener.listen(_BACKLOG)
        except KeyError:
            raise RuntimeDirError(f"there is no group {group!r}: see [daemon] socket_group and admin_group") from None
        except OSError as error:
            raise RuntimeDirError(f"{path}: {error.strerror}") from None
        self._listening.append(path)
        return listener.detach()

    def close(self) -> None:
        """Remove the sockets and give the folder free. The lock's file stays: removing it would race a new daemon."""
        for path in self._listening:
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(self._lock)


def listen_tcp(address: Address) -> tuple[int, Address]:
    """Listen at the address; returns the descriptor, and the address with the port. Raises RuntimeDirError."""
    listener = socket.socket(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A daemon that starts again need not wait for the last packets of the one before.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.is_ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise RuntimeDirError(
            f"{address.endpoint}: {error.strerror}. Set an address of this machine and a free port in [tcp] listen."
        ) from None
    port = listener.getsockname()[1]
    return listener.detach(), Address(address.host, port)
