"""The listening sockets: those in the runtime folder, created with their modes and passed to ZeroMQ as descriptors, and
the TCP socket.

ZeroMQ's own bind creates a socket that every user may open, and replaces the socket of a daemon that still listens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import zmq

from glmtts.protocol.endpoints import CONTROL, EVENTS, MAX_PATH_BYTES, REQUESTS, WORKERS

from ..config.tcp_access import Address
from ..log.logger import Logger
from ..processes.own_process import backlog

#: Sockets that a service manager may hand over, by their FileDescriptorName. Only clients of the requests socket have
#: a reason to connect before the daemon runs.
_HANDED_OVER = {"requests": REQUESTS}
#: Longest time that the sockets of a daemon that has just ended may still exist, in seconds.
_GOING_S = 1.0
#: Flags of a socket that listens, in /proc/net/unix: __SO_ACCEPTCON.
_LISTENS = 1 << 16

#: ZeroMQ's threads where there is TCP; and as bits of ZMQ_AFFINITY the one for the sockets of this machine, and the one
#: for TCP alone: strangers' handshakes, and encryption, don't keep local clients waiting.
IO_THREADS = 2
LOCAL_THREAD, TCP_THREAD = 0b01, 0b10


class RuntimeDirError(Exception):
    """The runtime folder or the TCP address can't be used; the message says why, and what to do."""


class RuntimeDir:
    """Owns the runtime folder and its lock while the daemon lives: two daemons can't share a folder."""

    def __init__(self, path: Path, inherited: Mapping[str, int] | None = None) -> None:
        """Make the folder if it is not there, check whose it is, and lock it. Raises RuntimeDirError.

        ``inherited``: listening sockets that a service manager has handed over, by the name that it gives them.
        """
        self.path = path
        self._inherited = {_HANDED_OVER[name]: fd for name, fd in (inherited or {}).items() if name in _HANDED_OVER}
        if unknown := (inherited or {}).keys() - _HANDED_OVER.keys():
            raise RuntimeDirError(
                f"a socket was handed over under the name {min(unknown)!r}, and this daemon takes over "
                f"{', '.join(_HANDED_OVER)} alone: see FileDescriptorName in the socket unit"
            )
        longest = max(len(os.fsencode(path / name)) for name in (REQUESTS, CONTROL, EVENTS, WORKERS))
        if longest > MAX_PATH_BYTES:
            raise RuntimeDirError(
                f"{path}: too long a path: a socket's path has at most {MAX_PATH_BYTES} bytes. Set a shorter one in "
                "[daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
            )
        try:
            # Other users may look up sockets in it; the sockets' modes say which they may open. The folder in /tmp,
            # where every user may create folders, is private.
            private = path == Path(f"/tmp/glmtts-{os.geteuid()}")
            # Whatever umask the daemon was started with: in a private folder no other user finds the sockets.
            before = os.umask(0o077 if private else 0o022)
            try:
                path.mkdir(parents=True, exist_ok=True)
            finally:
                os.umask(before)
            status = path.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise RuntimeDirError(f"{path}: not a folder")
            if status.st_uid != os.geteuid():
                raise RuntimeDirError(
                    f"{path}: belongs to user {status.st_uid}, who could replace the daemon's sockets. "
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
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                os.close(self._lock)
                raise RuntimeDirError(
                    f"{path}: files can't be locked there ({error.strerror}), so a second daemon would not be noticed. "
                    "Set a folder on a local disk in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
                ) from None
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise RuntimeDirError(
                f"{path}: another daemon (pid {holder}) serves here. Stop it with 'glmttsctl stop', or give this one a "
                "runtime folder of its own."
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        #: The sockets that were made here, with their modes and groups; and the inode of each, handed over or not.
        self._made: dict[str, tuple[int, str]] = {}
        self._files: dict[str, int] = {}
        self._reported: set[str] = set()

    def endpoint(self, name: str) -> str:
        """The ZeroMQ endpoint of a socket in the folder."""
        return f"ipc://{self.path / name}"

    def listen(self, name: str, mode: int, group: str = "") -> int:
        """Create a listening socket or take over the inherited one; returns its descriptor. Raises RuntimeDirError."""
        path = self.path / name
        if name in self._inherited:
            descriptor = _taken_over(self._inherited.pop(name), path, mode, group)
            self._files[name] = path.stat().st_ino
            return descriptor
        _wait_for_silence(path)
        return self._make(path, mode, group)

    def _make(self, path: Path, mode: int, group: str) -> int:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # A file here belongs to a dead daemon, because the folder's lock is held.
            path.unlink(missing_ok=True)
            listener.bind(os.fspath(path))
            if group:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            # Before listen(): until then no client can connect, whatever the mode.
            path.chmod(mode)
            listener.listen(backlog())
            self._files[path.name] = path.stat().st_ino
        except KeyError:
            raise RuntimeDirError(f"there is no group {group!r}: see [daemon] socket_group and admin_group") from None
        except OSError as error:
            raise RuntimeDirError(f"{path}: {error.strerror}") from None
        self._made[path.name] = mode, group
        return listener.detach()

    def restore(self, sockets: Mapping[str, zmq.Socket[bytes]], log: Logger) -> None:
        """Create each socket again whose file was removed or replaced, so that clients find the daemon."""
        removed = {name for name, inode in self._files.items() if _inode(self.path / name) != inode}
        for name in sorted(removed):
            try:
                # The old socket still listens, but no client can find it.
                sockets[name].setsockopt(zmq.USE_FD, self._listen_again(name))
                sockets[name].bind(self.endpoint(name))
            except (RuntimeDirError, zmq.ZMQError) as error:
                if name not in self._reported:
                    log.error("the socket's file was removed and can't be made again", socket=name, reason=str(error))
            else:
                log.warning("the socket's file was removed, and is made again", socket=name)
        self._reported = removed

    def _listen_again(self, name: str) -> int:
        if name not in self._made:
            raise RuntimeDirError(
                f"{self.path / name}: this socket of the service manager was removed, and clients can't find it. "
                "'systemctl restart glmtts.socket' makes it again"
            )
        return self._make(self.path / name, *self._made[name])

    def close(self) -> None:
        """Remove the sockets and release the lock. The lock's file stays: removing it would race a new daemon."""
        for name in self._made:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        os.close(self._lock)


def _inode(path: Path) -> int:
    """Of which file it is the name; 0 if there is none."""
    try:
        return path.stat(follow_symlinks=False).st_ino
    except OSError:
        return 0


def _taken_over(descriptor: int, path: Path, mode: int, group: str) -> int:
    """Check a listening socket of the service manager and set its mode and group; it outlives the daemon."""
    bound: object = None
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listener:
        listens = listener.family == socket.AF_UNIX and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and listener.type == socket.SOCK_STREAM:
            bound = listener.getsockname()
            listener.listen(backlog())  # the service manager's may be too long for this daemon's descriptors
    if not isinstance(bound, str) or os.path.realpath(bound) != os.path.realpath(path):
        raise RuntimeDirError(
            f"{path}: the socket that was handed over for it is {bound or 'no listening stream socket'}: clients could "
            "not find it. Set the same folder in ListenStream of the socket unit and in GLMTTS_RUNTIME_DIR."
        )
    try:
        about = path.stat(follow_symlinks=False)
        group_id = grp.getgrnam(group).gr_gid if group else about.st_gid
        if about.st_gid != group_id:
            os.chown(path, -1, group_id)
        if stat.S_IMODE(about.st_mode) != mode:
            path.chmod(mode)
    except KeyError:
        raise RuntimeDirError(f"there is no group {group!r}: see [daemon] socket_group") from None
    except FileNotFoundError:
        raise RuntimeDirError(
            f"{path}: the socket that was handed over for it has been removed, so clients can't find the daemon. "
            "Let the service manager create it again: systemctl restart glmtts.socket"
        ) from None
    except OSError as error:
        raise RuntimeDirError(
            f"{path}: {error.strerror}: this socket was handed over with the mode "
            f"{stat.S_IMODE(about.st_mode):04o} and can't be given {mode:04o}. Set SocketUser, SocketGroup and "
            "SocketMode of the socket unit as [daemon] socket_group and socket_mode say."
        ) from None
    return descriptor


def _wait_for_silence(path: Path) -> None:
    """Wait until no process listens at ``path``. Raises RuntimeDirError when one still does."""
    deadline = time.monotonic() + _GOING_S
    while _is_listened_to(path):
        if time.monotonic() > deadline:
            raise RuntimeDirError(
                f"{path}: another program listens there. If 'systemctl status glmtts.socket' shows a socket unit, "
                "start the daemon by its unit ('systemctl start glmtts.service'); otherwise set another runtime folder."
            )
        time.sleep(0.01)


def _is_listened_to(path: Path) -> bool:
    """Whether a process listens at this path; does not connect, which that process would notice."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/unix").read_bytes().splitlines()[1:]:
            # Num: RefCount Protocol Flags Type St Inode Path
            fields = line.split(None, 7)
            if len(fields) == 8 and fields[7] == os.fsencode(path) and int(fields[3], 16) & _LISTENS:
                return True
    return False


def listen_tcp(address: Address) -> tuple[int, Address]:
    """Listen at the address; returns the descriptor, and the address with the port. Raises RuntimeDirError."""
    try:
        listener = socket.socket(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise RuntimeDirError(
            f"{address.endpoint}: {error.strerror}: this machine has no {'IPv6' if address.is_ipv6 else 'IPv4'}. "
            "Set an address of the other kind in [tcp] listen."
        ) from None
    try:
        # A restarted daemon must not wait for the TIME_WAIT of its predecessor's connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.is_ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address.host, address.port))
        listener.listen(backlog())
    except OSError as error:
        listener.close()
        raise RuntimeDirError(
            f"{address.endpoint}: {error.strerror}. Set an address of this machine and a free port in [tcp] listen."
        ) from None
    port = listener.getsockname()[1]
    return listener.detach(), Address(address.host, port)
