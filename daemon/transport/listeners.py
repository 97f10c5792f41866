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
import resource
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import zmq

from glmtts.protocol.endpoints import CONTROL, EVENTS, MAX_PATH_BYTES, REQUESTS, WORKERS, open_to_others

from ..config.tcp_access import Address
from ..log.logger import Logger
from ..processes.own_process import backlog

#: Sockets that a service manager may hand over, by their FileDescriptorName. Only clients of the requests socket have
#: a reason to connect before the daemon runs.
_HANDED_OVER = {"requests": REQUESTS}
#: Longest time that the sockets of a daemon that has just ended may still exist, in seconds.
_GOING_S = 1.0
#: Sockets that are made again may take this part of the descriptors.
_REMADE_SHARE = 8
#: Flags of a socket that listens, in /proc/net/unix: __SO_ACCEPTCON.
_LISTENS = 1 << 16

#: ZeroMQ's threads where there is TCP; and as bits of ZMQ_AFFINITY the one for the sockets of this machine, and the one
#: for TCP alone: strangers' handshakes, and encryption, don't keep local clients waiting.
IO_THREADS = 2
LOCAL_THREAD, TCP_THREAD = 0b01, 0b10


class RuntimeDirError(Exception):
    """The runtime folder, the state folder or the TCP address can't be used; the message says why, and what to do."""


def check_state_folder(path: Path) -> None:
    """Refuse a state folder that another user owns, or has written in: the daemon would trust what is there.

    A new file system is often open to everyone; that is ended where no stranger has used it yet. A group may write, as
    in volumes of containers. Raises RuntimeDirError.
    """
    trusted = (0, os.geteuid())
    try:
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in trusted:
            problem = f"belongs to user {status.st_uid}"
        elif not mode & stat.S_IWOTH:
            return
        else:
            problem = f"every user may write in it (mode {mode:04o})"
            with contextlib.suppress(PermissionError):
                path.chmod(mode & ~stat.S_IWOTH)
                if all(entry.lstat().st_uid in trusted for entry in path.iterdir()):
                    return
                problem = "every user could write in it, and it has files of others"
    except OSError:
        return  # it is made later, or reported where it is needed
    raise RuntimeDirError(
        f"{path}: {problem}, who could replace the journal, voices and keys. Start the daemon as the folder's owner, "
        "remove the files of others, chmod o-w it, or set another folder in [daemon] state_dir."
    )


class TakenError(RuntimeDirError):
    """Another daemon holds the runtime folder's lock."""


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
        # Other users may look up sockets in it; the sockets' modes say which they may open. The folder in /tmp, where
        # every user may create folders, is private.
        self._mode = 0o700 if path == Path(f"/tmp/glmtts-{os.geteuid()}") else 0o755
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._claim()
        #: A folder that is made again gets the mode and group that this one has, which a service manager may have set.
        about = path.stat()
        if open_to_others(about):
            os.close(self._lock)
            raise RuntimeDirError(
                f"{path}: other users may write in it (mode {stat.S_IMODE(about.st_mode):04o}) and could replace the "
                "daemon's sockets. Remove it or chmod 755 it, or set another folder in [daemon] runtime_dir or "
                "GLMTTS_RUNTIME_DIR."
            )
        self._mode, self._group = stat.S_IMODE(about.st_mode), about.st_gid
        #: The sockets with their modes and groups; and those that were made here, each with its device and inode.
        self._wanted: dict[str, tuple[int, str]] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._made: set[str] = set()
        self._handed_over = set(self._inherited)
        #: How often a socket was made again; each time takes a descriptor for good.
        self._remade = 0

    def _claim(self) -> int:
        """Make the folder if it is not there, check whose it is, and lock it; returns the lock's descriptor.

        Raises RuntimeDirError.
        """
        try:
            # Whatever umask the daemon was started with: in a private folder no other user finds the sockets.
            before = os.umask(0o777 & ~self._mode)
            try:
                with contextlib.suppress(FileExistsError):
                    self.path.mkdir(mode=self._mode)
            finally:
                os.umask(before)
            self._check()
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RuntimeDirError(
                f"{error.filename or self.path}: {error.strerror}. Set a folder that this user can write to in "
                f"[daemon] runtime_dir or GLMTTS_RUNTIME_DIR.{_out_of_reach(self.path / REQUESTS)}"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                os.close(lock)
                raise RuntimeDirError(
                    f"{self.path}: files can't be locked there ({error.strerror}), so a second daemon would not be "
                    "noticed. Set a folder on a local disk in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
                ) from None
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise TakenError(
                f"{self.path}: another daemon (pid {holder}) serves here. Stop it with 'glmttsctl stop' (or 'kill "
                f"{holder}', where that finds no socket), or give this one a runtime folder of its own."
            ) from None
        # Shown by a daemon that finds the folder locked; a full disk may have no room for it.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _check(self) -> int:
        """Check that the folder is one, and this user's; returns its mode. Raises RuntimeDirError, OSError."""
        status = self.path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise RuntimeDirError(f"{self.path}: not a folder. Remove it, or set another [daemon] runtime_dir.")
        if status.st_uid != os.geteuid():
            raise RuntimeDirError(
                f"{self.path}: belongs to user {status.st_uid}, who could replace the daemon's sockets. "
                "Remove it, or set another folder in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR."
            )
        return stat.S_IMODE(status.st_mode)

    def endpoint(self, name: str) -> str:
        """The ZeroMQ endpoint of a socket in the folder."""
        return f"ipc://{self.path / name}"

    def listen(self, name: str, mode: int, group: str = "") -> int:
        """Create a listening socket or take over the inherited one; returns its descriptor. Raises RuntimeDirError."""
        path = self.path / name
        self._wanted[name] = mode, group
        if name not in self._inherited:
            _wait_for_silence(path)
            return self._make(path, mode, group)
        descriptor = self._inherited.pop(name)
        if not _take_over(descriptor, path, mode, group):
            # Clients can't find it, and another start would not bring it back.
            os.close(descriptor)
            return self._make(path, mode, group)
        self._files[name] = _place(path)
        return descriptor

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
            self._files[path.name] = _place(path)
        except KeyError:
            raise RuntimeDirError(f"there is no group {group!r}: see [daemon] socket_group and admin_group") from None
        except OSError as error:
            raise RuntimeDirError(f"{path}: {error.strerror}") from None
        self._made.add(path.name)
        return listener.detach()

    def restore(self, sockets: Mapping[str, zmq.Socket[bytes]], log: Logger) -> str:
        """Make the folder, its lock and each socket again that was removed or replaced: clients find the daemon again.

        Connections that are open are not affected. Returns what stays wrong all the same, or ``""``. Raises
        RuntimeDirError, and TakenError if another daemon holds the folder, which is then left as it is.
        """
        self._restore_folder(log)
        for name, place in sorted(self._files.items()):
            if _place(self.path / name) == place:
                continue
            # The old socket still listens, but no client can find it. It can't be closed: ZeroMQ would close its
            # connections too.
            if self._remade >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _REMADE_SHARE:
                raise RuntimeDirError(
                    f"{self.path / name}: the sockets were removed and made again so often that this would use up the "
                    "daemon's descriptors. Find the program that removes them ('inotifywait', 'auditctl'), and restart "
                    "the daemon"
                )
            descriptor = self._make(self.path / name, *self._wanted[name])
            try:
                sockets[name].setsockopt(zmq.USE_FD, descriptor)
                sockets[name].bind(self.endpoint(name))
            except zmq.ZMQError as error:
                raise RuntimeDirError(f"{self.path / name}: {error}") from None
            self._remade += 1
            log.warning("the socket's file was removed, and is made again", socket=name)
        if lost := sorted(self._handed_over & self._made):
            return (
                f"the service manager's socket {self.path / lost[0]} was removed; the daemon serves at one of its own, "
                "which ends with it. 'systemctl restart glmtts.socket' makes the other again, and restarts the daemon"
            )
        return ""

    @property
    def can_be_found(self) -> bool:
        """Whether clients find the requests socket, whatever else is wrong with the folder."""
        with contextlib.suppress(RuntimeDirError, OSError):
            self._check()
            return _place(self.path / REQUESTS) == self._files[REQUESTS]
        return False

    def _restore_folder(self, log: Logger) -> None:
        mode: int | None = None
        try:
            with contextlib.suppress(FileNotFoundError):
                mode = self._check()
            held = os.fstat(self._lock)
            if fresh := _place(self.path / "lock") != (held.st_dev, held.st_ino):
                # The old lock is held until the new one is.
                lock = self._claim()
                os.close(self._lock)
                self._lock = lock
                what = "runtime folder" if mode is None else "lock of the runtime folder"
                log.warning(f"the {what} was removed, and is made again", folder=str(self.path))
            mode = self._check()
            # A mode that was made stricter is an operator's wish, unless it keeps the daemon itself out.
            wanted = self._mode if fresh else mode & (~0o022 | self._mode) | 0o700
            if mode != wanted:
                self.path.chmod(wanted)
                log.warning("the mode of the runtime folder is set again", folder=str(self.path), mode=f"{wanted:04o}")
            if fresh and self.path.stat().st_gid != self._group:
                os.chown(self.path, -1, self._group)
        except OSError as error:
            raise RuntimeDirError(f"{self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Remove the own sockets and release the lock. The lock's file stays: removing it would race a new daemon."""
        for name in self._made:
            with contextlib.suppress(OSError):
                if _place(self.path / name) == self._files[name]:
                    (self.path / name).unlink()
        os.close(self._lock)


def _place(path: Path) -> tuple[int, int]:
    """The device and inode that the path names; zeros if there is none."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _take_over(descriptor: int, path: Path, mode: int, group: str) -> bool:
    """Check a listening socket of the service manager and set its mode and group; it outlives the daemon.

    Returns False if its file was removed. Raises RuntimeDirError.
    """
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
        return False
    except OSError as error:
        raise RuntimeDirError(
            f"{path}: {error.strerror}: this socket was handed over with the mode "
            f"{stat.S_IMODE(about.st_mode):04o} and can't be given {mode:04o}. Set SocketUser, SocketGroup and "
            "SocketMode of the socket unit as [daemon] socket_group and socket_mode say."
        ) from None
    return True


def _wait_for_silence(path: Path) -> None:
    """Wait until no process listens at ``path``. Raises RuntimeDirError when one still does."""
    deadline = time.monotonic() + _GOING_S
    while listeners := _listeners(path):
        if time.monotonic() > deadline:
            pid = _holder(listeners)
            what, do = "another program listens there", ""
            # A socket unit's socket is the first process's.
            if pid is not None and pid != 1:
                what = f"another program (pid {pid}) listens there"
                do = f"If it is a daemon, use that one, or end it with 'glmttsctl stop' or 'kill {pid}'. "
            if not path.exists():
                what += ", though the socket's file was removed: a daemon makes it again within seconds"
            raise RuntimeDirError(
                f"{path}: {what}. {do}If 'systemctl status glmtts.socket' shows a socket unit, "
                "start the daemon by its unit ('systemctl start glmtts.service'); otherwise set another runtime folder."
            )
        time.sleep(0.01)


def _out_of_reach(path: Path) -> str:
    """For the message about a folder that can't be used: which other daemon had it before, if one still runs."""
    pid = _holder(_listeners(path))
    if pid in (None, 1, os.getpid()):
        return ""
    return f" A daemon (pid {pid}) that had this folder still runs, out of reach: 'kill {pid}' ends it."


def _listeners(path: Path) -> set[str]:
    """The sockets that listen at this path, as /proc/PID/fd shows them; does not connect, which would be noticed."""
    found = set()
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/unix").read_bytes().splitlines()[1:]:
            # Num: RefCount Protocol Flags Type St Inode Path
            fields = line.split(None, 7)
            if len(fields) == 8 and fields[7] == os.fsencode(path) and int(fields[3], 16) & _LISTENS:
                found.add(f"socket:[{int(fields[6])}]")
    return found


def _holder(sockets: set[str]) -> int | None:
    """The process that has one of these sockets open; None where this user may not see it."""
    if not sockets:
        return None
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(str(descriptor.readlink()) in sockets for descriptor in descriptors.iterdir()):
                return int(descriptors.parent.name)
    return None


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
