"""Checks of files: the configuration, the runtime folder and its sockets, and the folders that the daemon writes."""

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

from glmtts.protocol.endpoints import (
    CONTROL,
    EVENTS,
    MAX_PATH_BYTES,
    REQUESTS,
    WORKERS,
    open_to_others,
    runtime_dir,
    stranger_s_folder,
)

from .. import config
from ..core.settings import Settings
from ..storage.filesystems import network_filesystem
from .check import Check, finding, memory, ok, warning, wrong

_LITTLE_DISK = 512 << 20


def configuration(path: Path | None, *, look_up: bool = False) -> tuple[Settings, list[Check]]:
    """The settings, which are the defaults where the file is wrong, and what is wrong with it.

    Args:
        look_up: whether the users and keys that it names are looked up too.
    """
    name = "configuration"
    try:
        loaded = config.read(path)
    except config.ConfigError as error:
        seen = "; ".join(error.problems)
        defaults = "; the doctor goes by the built-in defaults"
        if _is_closed(path):
            means = f"a daemon of this user can't start with it, and its content can't be checked{defaults}"
            return Settings(), [warning(name, seen, means, "run the doctor as the daemon's user, or as root")]
        means = f"no daemon can start with it, and a running one keeps its old configuration{defaults}"
        return Settings(), [wrong(name, seen, means, f"correct {path}; `glmttsctl config check` names every problem")]
    checks = [ok(name, f"{path or 'built-in defaults'}: good")]
    if look_up:
        means = "the name is probably misspelt, and the setting then applies to no client"
        remedy = f"correct {path}, or leave it if the user or the key will be added later"
        checks += [
            warning("names in the configuration", f"{path}: {problem}", means, remedy)
            for problem in config.unknown_names(loaded.settings, loaded.tcp)
        ]
    return loaded.settings, checks


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
    folder, name = runtime_dir(settings.daemon.runtime_dir), "runtime folder"
    longest = max(len(os.fsencode(folder / socket)) for socket in (REQUESTS, CONTROL, EVENTS, WORKERS))
    if longest > MAX_PATH_BYTES:
        means = f"the path of a socket has at most {MAX_PATH_BYTES} bytes, and these would have {longest}"
        return [wrong(name, str(folder), means, "set a shorter one in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR")]
    try:
        status = folder.stat(follow_symlinks=False)
    except FileNotFoundError:
        return [ok(name, f"{folder}: not there; the daemon makes it")]
    except OSError as error:
        means = f"user {_me()} can't reach the sockets in it"
        remedy = "let this user search the folders above it (chmod o+x), or set another in [daemon] runtime_dir"
        return [wrong(name, f"{folder}: {error.strerror}", means, remedy)]
    if not stat.S_ISDIR(status.st_mode):
        remedy = "remove it, or set another folder in [daemon] runtime_dir"
        return [wrong(name, f"{folder}: not a folder", "the daemon can't put its sockets there", remedy)]
    if open_to_others(status):
        means = "every user who may write in it could replace the sockets: the daemon does not start there"
        return [wrong(name, f"{folder}: {_owner(status)}", means, f"chmod 755 {folder}, or set another folder")]
    if problem := stranger_s_folder(folder):
        means = "clients send nothing to the sockets in it, as another user could listen there"
        remedy = "have that folder removed, or name another in GLMTTS_RUNTIME_DIR, or the endpoint in GLMTTS_ENDPOINT"
        return [warning(name, f"{folder}: {problem}", means, remedy)]
    looked = runtime_dir()
    return [
        finding(
            "warning" if looked != folder else "ok",
            name,
            f"{folder}: {_owner(status)}",
            f"clients don't read the configuration and look in {looked}",
            f"set GLMTTS_RUNTIME_DIR={folder} for them, or leave [daemon] runtime_dir out",
        ),
        *(_socket(folder / socket) for socket in (REQUESTS, CONTROL, EVENTS)),
    ]


def _socket(path: Path) -> Check:
    """Whether a daemon listens at ``path``, and whether this user may connect to it."""
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return ok(path.name, "not there: no daemon runs")
    seen = _owner(status)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(os.fspath(path))
    if result in (0, errno.EAGAIN):
        return ok(path.name, f"{seen}; a daemon listens")
    if result == errno.ECONNREFUSED:
        means, remedy = "a daemon that was killed has left it", "start glmttsd: it replaces the socket"
        return warning(path.name, f"{seen}; no daemon listens", means, remedy)
    if result in (errno.EACCES, errno.EPERM):
        return _forbidden(path, status)
    return wrong(path.name, f"{seen}; {os.strerror(result)}", "it can't be connected to")


def _forbidden(path: Path, status: os.stat_result) -> Check:
    is_requests = path.name == REQUESTS
    group = _group(status.st_gid)
    open_to_group = bool(status.st_mode & stat.S_IWGRP) and status.st_gid != 0
    if open_to_group and _me() in _members(status.st_gid):
        remedy = f"log in again: {_me()} is in the group {group}, but this session began before"
    elif open_to_group:
        remedy = f"have an administrator run: usermod -aG {group} {_me()}; then log in again"
    else:
        remedy = f"set [daemon] {'socket_group' if is_requests else 'admin_group'} to a group of {_me()}, and restart"
    return finding(
        "wrong" if is_requests else "warning",
        path.name,
        f"{_owner(status)}; {_me()} may not open it",
        "this user can't send requests" if is_requests else "operators' commands (status, workers, top) are refused",
        remedy,
    )


def folders(settings: Settings) -> list[Check]:
    """The folders that the daemon writes, and the free space in them."""
    return [
        *state(settings),
        _folder("outputs folder", config.outputs_dir(settings), "[audio] outputs"),
        _folder("runtime disk", runtime_dir(settings.daemon.runtime_dir), "[daemon] runtime_dir", little=1 << 20),
    ]


def state(settings: Settings) -> list[Check]:
    """The state folder, with the journal of durable jobs in it."""
    path = config.state_dir(settings)
    checks = [_folder("state folder", path, "[daemon] state_dir")]
    if kind := network_filesystem(path):
        means = (
            "the journal of durable jobs needs locks and shared memory that such a file system has not, or only "
            "sometimes: durable jobs may be refused, and the journal may be damaged"
        )
        remedy = "set a folder on a local disk in [daemon] state_dir"
        checks.append(warning("state folder", f"{path}: on the network ({kind})", means, remedy))
    return checks


def _folder(name: str, path: Path, key: str, little: int = _LITTLE_DISK) -> Check:
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    seen = f"{path}: {memory(free)} free" + ("" if there == path else ", not there yet")
    owner = there.stat().st_uid
    if os.geteuid() not in (owner, 0):
        return ok(name, f"{seen}; run the doctor as {_user(owner)}, its owner, to see whether it can be written")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = f"let {_me()} write {there}, or set another folder in {key}"
        return wrong(name, f"{path}: can't be written: {error.strerror}", "the daemon can't keep its files", remedy)
    if free < little:
        means = "when it is full, outputs fail (output_failed) and durable jobs are refused"
        return warning(name, seen, means, f"make room, or set a folder on another disk in {key}")
    return ok(name, f"{seen}, writable")


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
