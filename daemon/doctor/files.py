"""What the doctor sees of files: configuration, runtime folder and sockets, the folders that are written."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from glmtts.protocol.endpoints import CONTROL, EVENTS, MAX_PATH_BYTES, REQUESTS, WORKERS, runtime_dir

from ..config import load as config
from ..config import names as config_names
from ..core.settings import Settings
from .check import Check, memory

_LITTLE_DISK = 512 << 20


def configuration(path: Path | None, *, look_up: bool = False) -> tuple[Settings, list[Check]]:
    """The settings, the defaults where the file is wrong, and how the file is; ``look_up``: the names in it too."""
    try:
        loaded = config.load(path)
    except config.ConfigError as error:
        if _is_closed(path):
            return Settings(), [
                Check(
                    name="configuration",
                    state="warning",
                    seen="; ".join(error.problems),
                    means="a daemon of this user does not start with it, and whether it is good can't be told; "
                    "the built-in defaults stand in for it here",
                    mend="run the doctor as the daemon's user, or as root",
                )
            ]
        return Settings(), [
            Check(
                name="configuration",
                state="wrong",
                seen="; ".join(error.problems),
                means="the daemon does not start with it, and a running one keeps what it has; the built-in defaults "
                "stand in for it here",
                mend=f"correct {path}; `glmttsctl config check` names every problem",
            )
        ]
    return loaded.settings, [
        Check(name="configuration", seen=f"{path or 'built-in defaults'}: good"),
        *(
            Check(
                name="names in the configuration",
                state="warning",
                seen=f"{path}: {problem}",
                means="it is probably misspelt, and what is said there holds for nobody",
                mend=f"correct {path}, or leave it if the user or the key is still to come",
            )
            for problem in (config_names.unknown(loaded.settings, loaded.tcp) if look_up else ())
        ),
    ]


def _is_closed(path: Path | None) -> bool:
    """Whether this user may not read the file."""
    try:
        if path:
            path.open("rb").close()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def runtime(settings: Settings) -> list[Check]:
    """The runtime folder and its sockets."""
    folder = runtime_dir(settings.daemon.runtime_dir)
    longest = max(len(os.fsencode(folder / name)) for name in (REQUESTS, CONTROL, EVENTS, WORKERS))
    if longest > MAX_PATH_BYTES:
        return [
            Check(
                name="runtime folder",
                state="wrong",
                seen=str(folder),
                means=f"a socket's path has at most {MAX_PATH_BYTES} bytes, these would have {longest}",
                mend="set a shorter one in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR",
            )
        ]
    try:
        status = folder.stat(follow_symlinks=False)
    except FileNotFoundError:
        return [Check(name="runtime folder", seen=f"{folder}: not there; the daemon makes it")]
    except OSError as error:
        return [_closed(folder, error)]
    if not stat.S_ISDIR(status.st_mode):
        return [
            Check(
                name="runtime folder",
                state="wrong",
                seen=f"{folder}: no folder",
                means="the daemon can't put its sockets there",
                mend="remove it, or set another folder in [daemon] runtime_dir",
            )
        ]
    found = Check(name="runtime folder", seen=f"{folder}: {_owner(status)}")
    if (looked := runtime_dir()) != folder:
        found.state = "warning"
        found.means = f"clients don't read the configuration and look in {looked}"
        found.mend = f"set GLMTTS_RUNTIME_DIR={folder} for them, or leave [daemon] runtime_dir out"
    return [
        found,
        *(_socket(folder / name) for name in (REQUESTS, CONTROL, EVENTS)),
    ]


def _closed(path: Path, error: OSError) -> Check:
    return Check(
        name="runtime folder",
        state="wrong",
        seen=f"{path}: {error.strerror}",
        means=f"user {_me()} can't reach the sockets in it",
        mend="let this user search the folders above it (chmod o+x), or set another in [daemon] runtime_dir",
    )


def _socket(path: Path) -> Check:
    """Whether somebody listens, and whether this user may speak to him."""
    name = path.name
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return Check(name=name, seen="not there: no daemon runs")
    seen = _owner(status)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(os.fspath(path))
    if result in (0, errno.EAGAIN):
        return Check(name=name, seen=f"{seen}; a daemon listens")
    if result == errno.ECONNREFUSED:
        return Check(
            name=name,
            state="warning",
            seen=f"{seen}; nobody listens",
            means="it was left by a daemon that was killed",
            mend="start glmttsd: it puts a new one in its place",
        )
    if result in (errno.EACCES, errno.EPERM):
        return _forbidden(path, status)
    return Check(name=name, state="wrong", seen=f"{seen}; {os.strerror(result)}", means="it can't be connected to")


def _forbidden(path: Path, status: os.stat_result) -> Check:
    operators = path.name != REQUESTS
    group = _group(status.st_gid)
    open_to_group = bool(status.st_mode & stat.S_IWGRP) and status.st_gid != 0
    listed = open_to_group and _me() in _members(status.st_gid)
    if listed:
        mend = f"log in again: {_me()} is in the group {group}, but this session began before"
    elif open_to_group:
        mend = f"have an administrator run: usermod -aG {group} {_me()}; then log in again"
    else:
        mend = f"set [daemon] {'admin_group' if operators else 'socket_group'} to a group of {_me()}, and restart"
    return Check(
        name=path.name,
        state="warning" if operators else "wrong",
        seen=f"{_owner(status)}; {_me()} may not open it",
        means="operators' commands (status, workers, top) are refused" if operators else "this user can't speak",
        mend=mend,
    )


def folders(settings: Settings) -> list[Check]:
    """The folders that the daemon writes, and the room in them."""
    return [
        _folder("state folder", config.state_dir(settings), "[daemon] state_dir"),
        _folder("outputs folder", config.outputs_dir(settings), "[audio] outputs"),
        _folder("runtime disk", runtime_dir(settings.daemon.runtime_dir), "[daemon] runtime_dir", little=1 << 20),
    ]


def _folder(name: str, path: Path, key: str, little: int = _LITTLE_DISK) -> Check:
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    seen = f"{path}: {memory(free)} free" + ("" if there == path else ", not there yet")
    status = there.stat()
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        return Check(
            name=name, seen=f"{seen}; belongs to {_user(status.st_uid)}, only who can tell if it can be written"
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Check(
            name=name,
            state="wrong",
            seen=f"{path}: can't be written: {error.strerror}",
            means="the daemon can't keep there what it must",
            mend=f"let {_me()} write {there}, or set another folder in {key}",
        )
    if free < little:
        return Check(
            name=name,
            state="warning",
            seen=seen,
            means="when it is full, outputs fail (output_failed) and durable jobs are refused",
            mend=f"make room, or set a folder on another disk in {key}",
        )
    return Check(name=name, seen=f"{seen}, writable")


def _owner(status: os.stat_result) -> str:
    return f"{_user(status.st_uid)}:{_group(status.st_gid)} {stat.S_IMODE(status.st_mode):04o}"


def _me() -> str:
    return _user(os.geteuid())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _members(gid: int) -> list[str]:
    try:
        return grp.getgrgid(gid).gr_mem
    except KeyError:
        return []
