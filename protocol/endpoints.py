"""The sockets' folder, which the daemon and every client find in the same way, and whose it must be."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

REQUESTS = "glmtts.sock"
CONTROL = "control.sock"
EVENTS = "events.sock"
WORKERS = "workers.sock"

#: The runtime folder of a daemon that serves the whole machine.
MACHINE_DIR = Path("/run/glmtts")

#: Where the daemon of a user may be, by the user's number: with a login session, and without one.
_SESSION_DIRS = ("/run/user/{}/glmtts", "/tmp/glmtts-{}")

#: sun_path of sockaddr_un has 108 bytes with its closing NUL (unix(7)).
MAX_PATH_BYTES = 107


def runtime_dir(configured: str = "") -> Path:
    """The runtime folder, the first that is set: ``GLMTTS_RUNTIME_DIR``, ``configured``, systemd's
    ``RUNTIME_DIRECTORY``, ``/run/glmtts`` for root, ``$XDG_RUNTIME_DIR/glmtts``, ``/tmp/glmtts-<uid>``.
    """
    env = os.environ
    path = Path(f"/tmp/glmtts-{os.geteuid()}")
    if env.get("GLMTTS_RUNTIME_DIR"):
        path = Path(env["GLMTTS_RUNTIME_DIR"])
    elif configured:
        path = Path(configured)
    elif env.get("RUNTIME_DIRECTORY"):
        path = Path(env["RUNTIME_DIRECTORY"].split(":")[0])
    elif os.geteuid() == 0:
        path = MACHINE_DIR
    elif env.get("XDG_RUNTIME_DIR"):
        path = Path(env["XDG_RUNTIME_DIR"]) / "glmtts"
    # Workers run in another working directory.
    return path.absolute()


class FoundEndpoint(str):
    """The ``ipc://`` endpoint of a socket that was looked up in the runtime folder; a plain ``str`` was named.

    The folder may be in /tmp, where any user can make it. So the folder and the process that listens must belong to
    this user, to root, or to a user whom root has given that folder.
    """

    @property
    def folder(self) -> Path:
        """The folder of the socket."""
        return Path(self.removeprefix("ipc://")).parent

    def problem(self) -> str:
        """Why another user could have made the socket; ``""`` if no other can, now or later."""
        return stranger_s_folder(self.folder)

    def problem_of_peer(self, connected: socket.socket) -> str:
        """Why the process at the other end is not trusted; ``""`` if it is. Raises OSError."""
        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if uid in (0, os.geteuid(), self.folder.stat().st_uid):
            return ""
        return f"a process of user {uid} listens there"


def stranger_s_folder(folder: Path) -> str:
    """Why a user beside this one and root could put sockets into ``folder``; ``""`` if none can, or it is not there.

    A folder may belong to another user where root alone writes in the folder above it, as in ``/run``: then root has
    given it to that user, who runs the machine's daemon.
    """
    try:
        status = folder.stat()
        trusted = {0, os.geteuid()}
        if status.st_uid not in trusted and _is_root_s_alone(folder.resolve().parent.stat()):
            trusted.add(status.st_uid)
        if not stat.S_ISDIR(status.st_mode):
            return f"{folder} is no folder"
        real = folder.resolve()
        for part in dict.fromkeys((folder, *folder.parents, real, *real.parents)):
            # A link belongs to its maker; a folder's owner can replace its content.
            about = part.lstat()
            if about.st_uid not in trusted:
                return f"{part} belongs to user {about.st_uid}"
            if stat.S_ISDIR(about.st_mode) and about.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                return f"every user may replace the content of {part}"
        if open_to_others(status):
            return f"other users may write in {folder}"
    except FileNotFoundError:
        return ""
    except (OSError, RuntimeError) as error:
        return f"{folder} can't be examined: {getattr(error, 'strerror', None) or error}"
    return ""


def _is_root_s_alone(status: os.stat_result) -> bool:
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def open_to_others(status: os.stat_result) -> bool:
    """Whether users beside the owner may write: everyone, or a group that is not the owner's private one."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    import grp
    import pwd

    # Many systems give each user a group, and new folders its permission to write (umask 002).
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    return owner.pw_gid != status.st_gid or bool(set(group.gr_mem) - {owner.pw_name})


def requests_endpoint() -> str:
    """The endpoint of the requests socket, for a client: ``GLMTTS_ENDPOINT``, else the socket in the runtime folder.

    Without a named folder it is that of a daemon of the user's own, whichever kind of session it was started in, or of
    the machine's daemon. A socket in a folder that a stranger has made is not the user's own.
    """
    if named := os.environ.get("GLMTTS_ENDPOINT"):
        return named
    if os.environ.get("GLMTTS_RUNTIME_DIR"):
        # Named by the user, as an endpoint is: root may reach the daemon of another user so.
        return f"ipc://{runtime_dir() / REQUESTS}"
    own, machine_s = (FoundEndpoint(f"ipc://{folder / REQUESTS}") for folder in (runtime_dir(), MACHINE_DIR))
    if _is_there(own) and not own.problem():
        return own
    if other := _of_another_session():
        return FoundEndpoint(f"ipc://{other}")
    return machine_s if _is_there(machine_s) else own


def _is_there(endpoint: FoundEndpoint) -> bool:
    # Path.exists raises an error for the folder of another user.
    return os.path.exists(endpoint.removeprefix("ipc://"))  # noqa: PTH110


def _of_another_session() -> Path | None:
    """The socket of this user's daemon, started where ``XDG_RUNTIME_DIR`` is set and it is not here, or the reverse: by
    cron, by an init script, in a login session.
    """
    user = os.geteuid()
    for folder in (Path(pattern.format(user)) for pattern in _SESSION_DIRS):
        try:
            about = folder.stat(follow_symlinks=False)
            if about.st_uid == user and not about.st_mode & 0o022 and (folder / REQUESTS).exists():
                return folder / REQUESTS
        except OSError:
            continue
    return None


def sibling_endpoint(requests: str, name: str) -> str:
    """The endpoint of the socket ``name`` in the folder of the requests socket ``requests``, found or named as that is.

    Raises ValueError for an endpoint that is not ``ipc://``: control and events are reached on the machine itself.
    """
    if not requests.startswith("ipc://"):
        raise ValueError(f"{requests}: operators' sockets are only reachable through ipc://, on the daemon's machine")
    return type(requests)(f"ipc://{Path(requests.removeprefix('ipc://')).parent / name}")
