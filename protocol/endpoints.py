"""The sockets' folder, which the daemon and every client find in the same way."""

from __future__ import annotations

import os
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


def requests_endpoint() -> str:
    """The endpoint of the requests socket, for a client: ``GLMTTS_ENDPOINT``, else the socket in the runtime folder.

    Without a named folder it is that of a daemon of the user's own, whichever kind of session it was started in, or of
    the machine's daemon.
    """
    if named := os.environ.get("GLMTTS_ENDPOINT"):
        return named
    own, machine_s = runtime_dir() / REQUESTS, MACHINE_DIR / REQUESTS
    is_named = bool(os.environ.get("GLMTTS_RUNTIME_DIR"))
    if not is_named and not own.exists() and (other := _of_another_session()):
        return f"ipc://{other}"
    return f"ipc://{own if is_named or own.exists() or not machine_s.exists() else machine_s}"


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
    """The endpoint of the socket ``name`` in the folder of the requests socket ``requests``.

    Raises ValueError for an endpoint that is not ``ipc://``: control and events are reached on the machine itself.
    """
    if not requests.startswith("ipc://"):
        raise ValueError(f"{requests}: operators' sockets are only reachable through ipc://, on the daemon's machine")
    return f"ipc://{Path(requests.removeprefix('ipc://')).parent / name}"
