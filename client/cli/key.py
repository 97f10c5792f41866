"""`glmttsctl key`: the keys of the daemon and of the clients that may connect to it by TCP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glmtts.client import DaemonNotRunning, Forbidden

from .failures import Failure
from .live_config import InForce, ask
from .session import QUICK_TIMEOUT_S, session, shared_options
from .ui.output import plain, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glmtts.protocol.authorised_keys import Entry

F = TypeVar("F", bound=Callable[..., Any])

_SECRET_MODE = 0o600
_PUBLIC_MODE = 0o644

_FORCE = click.option("--force", is_flag=True, help="Replace a key that is there: who had it can't use it any more.")
_RELOAD = click.option("--reload", "and_reload", is_flag=True, help="Have the running daemon read the keys again.")


def _config(function: F) -> F:
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="The configuration that says where the keys are.  [that of the daemon that runs here, else the one that "
        "a daemon would find]",
    )(function)


@click.group()
def key() -> None:
    """Make keys for TCP, and say who may connect."""


@key.command()
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write the secret key.")
@_FORCE
@_config
@shared_options
def server(out: Path | None, config_file: Path | None, force: bool) -> None:
    """Make the daemon's key pair, and print the public key that its clients need.

    The daemon uses it from its next start on.
    """
    path = out or _files(config_file)["server_key"]
    public = _make("the daemon", path, force=force)
    _show({"file": str(path), "public_key": public}, public)
    session().note(f"The secret key is in {path}. Clients need the public key: GLMTTS_SERVER_KEY='{public}'")


@key.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it; by default NAME.key.")
@click.option("--authorise", is_flag=True, help="Also add it to the daemon's authorised_keys.")
@_FORCE
@_RELOAD
@_config
@shared_options
def new(
    name: str, *, out: Path | None, authorise: bool, config_file: Path | None, force: bool, and_reload: bool
) -> None:
    """Make a key pair for the client NAME, and print its line for authorised_keys."""
    from glmtts.protocol.authorised_keys import Entry

    _check_name(name)
    path = out or Path(f"{name}.key")
    authorised = _files(config_file)["authorised_keys"] if authorise else None
    if authorised is not None and not force:
        with _words():
            _refuse_known(_entries(authorised), Entry("", name), authorised)
    public = _make(f"client {name}", path, force=force)
    if authorised is not None:
        _add(Entry(public, name), authorised, replace=force)
    line = Entry(public, name).line()
    _show({"name": name, "file": str(path), "public_key": public, "line": line, "authorised": authorise}, line)
    session().note(f"The secret key is in {path}: GLMTTS_SECRET_KEY={path} makes a client use it.")
    if authorised is not None:
        _reload_or_say(and_reload, authorised)


@key.command()
@click.argument("name")
@click.argument("publickey")
@_FORCE
@_RELOAD
@_config
@shared_options
def add(name: str, publickey: str, config_file: Path | None, force: bool, and_reload: bool) -> None:
    """Let the client with PUBLICKEY connect, under NAME."""
    from glmtts.protocol.authorised_keys import Entry
    from glmtts.protocol.keys import is_key

    _check_name(name)
    if not is_key(publickey):
        raise click.UsageError(
            f"{publickey[:60]!r} is no public key: one has 40 characters of Z85. Have the shell leave it alone: '...'."
        )
    path = _files(config_file)["authorised_keys"]
    _add(Entry(publickey, name), path, replace=force)
    _show({"name": name, "public_key": publickey, "file": str(path)}, f"Added {name} to {path}.")
    _reload_or_say(and_reload, path)


@key.command(name="list")
@_config
@shared_options
def list_keys(config_file: Path | None) -> None:
    """The daemon's public key, and the clients that may connect."""
    from glmtts.protocol import keys

    files = _files(config_file)
    public = None
    with _words():
        entries = _entries(files["authorised_keys"])
        if files["server_key"].exists():
            public = keys.public_of(keys.read(files["server_key"], "secret"))
    rows = [{"name": entry.name, "public_key": entry.key, "comment": entry.comment} for entry in entries]
    if session().json:
        print_json({"server": public, "clients": rows} | {what: str(path) for what, path in files.items()})
        return
    click.echo(f"daemon: {public or 'no key yet; glmttsctl key server makes one'}  ({files['server_key']})")
    none = f"No client may connect: {files['authorised_keys']} has no keys."
    print_table(rows, ("name", "public_key", "comment"), none=none)


@key.command()
@click.argument("name")
@_RELOAD
@_config
@shared_options
def remove(name: str, config_file: Path | None, and_reload: bool) -> None:
    """Let the client NAME connect no more; the daemon disconnects it when it reads the keys again."""
    path = _files(config_file)["authorised_keys"]
    with _words(), _alone_in(path.parent):
        gone = [entry for entry in _entries(path) if entry.name == name]
        if not gone:
            raise Failure(f"{path}: no key has the name {name}; glmttsctl key list shows those that there are.")
        _edit(path, gone, [])
    _show({"name": name, "public_key": gone[0].key, "file": str(path)}, f"Removed {name} from {path}.")
    _reload_or_say(and_reload, path)


def _files(config_file: Path | None) -> dict[str, Path]:
    """``server_key`` and ``authorised_keys``, as the configuration has them: the one that is named, else that of the
    daemon that runs here, which may not be the one that this user's environment would have a daemon find.
    """
    if config_file is not None:
        return _configured(str(config_file), {})
    told, reason = _told()
    if told is None:
        files = _configured(None, {})
        session().note(
            f"{reason}, so these are the keys in {_folders(files)}, by the configuration that it would find."
        )
    else:
        files = _configured(told.file, told.environment)
        session().note(f"The daemon that runs here has its keys in {_folders(files)}.")
    return files


def _told() -> tuple[InForce | None, str]:
    """What the daemon that runs here says of its configuration, or why it says nothing."""
    try:
        return ask(session(), QUICK_TIMEOUT_S), ""
    except DaemonNotRunning:
        return None, "No daemon runs here"
    except Forbidden:
        return None, "The daemon that runs here is not this user's"


def _configured(file: str | None, environment: dict[str, str]) -> dict[str, Path]:
    # The daemon's code is never imported here: a client has to work where the daemon is not installed.
    command = [sys.executable, "-m", "glmtts.daemon.config", "keys", *([] if file is None else [file])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        raise Failure(f"The configuration can't be used, so its keys can't be found:\n{done.stderr.strip()}")
    return {what: Path(path) for what, path in json.loads(done.stdout).items()}


def _folders(files: dict[str, Path]) -> str:
    return " and ".join(dict.fromkeys(str(path.parent) for path in files.values()))


def _check_name(name: str) -> None:
    from glmtts.protocol.authorised_keys import NAME

    if not NAME.fullmatch(name):
        raise click.UsageError(f"{name[:60]!r} is no name: letters, digits, and _.@- after the first, 64 at most.")


def _make(whose: str, path: Path, *, force: bool) -> str:
    """Write a new pair; returns the public key. Nothing is overwritten without ``force``."""
    from glmtts.protocol import keys

    public, secret = keys.generate()
    text = f"# The secret key of {whose}: whoever has it, is {whose}.\n# Its public key: {public}\n{secret}\n"
    try:
        keys.write(path, text, mode=_SECRET_MODE, replace=force)
    except FileExistsError:
        raise Failure(f"{path}: there is a key already, and nothing was overwritten; --force replaces it.") from None
    return public


def _entries(path: Path) -> list[Entry]:
    from glmtts.protocol import authorised_keys

    try:
        return authorised_keys.read(path)
    except FileNotFoundError:
        return []


def _add(entry: Entry, path: Path, *, replace: bool) -> None:
    with _words(), _alone_in(path.parent):
        known = _entries(path)
        if not replace:
            _refuse_known(known, entry, path)
        _edit(path, [old for old in known if old.name == entry.name or old.key == entry.key], [entry])


def _refuse_known(known: list[Entry], entry: Entry, path: Path) -> None:
    for old in known:
        if old.name == entry.name:
            raise Failure(f"{path}: {old.name} has a key already; choose another name, or replace it with --force.")
        if old.key == entry.key:
            raise Failure(f"{path}: this key is there already, as {old.name}; --force gives it the new name.")


def _edit(path: Path, gone: list[Entry], added: list[Entry]) -> None:
    """Change lines, and leave all others as people have written them."""
    from glmtts.protocol import keys

    text = path.read_text(encoding="utf-8-sig") if path.exists() else "# PUBLICKEY NAME [COMMENT]\n"
    removed = {entry.key for entry in gone}
    kept = [line for line in text.splitlines() if not removed.intersection(line.split()[:1])]
    kept += [entry.line() for entry in added]
    # Public, but who changes it lets people in: nobody else may write to it.
    keys.write(path, "\n".join(kept) + "\n", mode=_PUBLIC_MODE, replace=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other command changes a file in there meanwhile: of two that write at once, one would be lost."""
    import fcntl
    import os

    from glmtts.protocol.keys import make_folder

    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _words() -> Iterator[None]:
    """What is wrong with a file of keys, as a failure of the command."""
    from glmtts.protocol.keys import KeyProblem

    try:
        yield
    except KeyProblem as problem:
        raise Failure(str(problem)) from None


def _show(values: dict[str, Any], words: str) -> None:
    if session().json:
        print_json(values)
    else:
        click.echo(words)


def _reload_or_say(and_reload: bool, changed: Path) -> None:
    """Have the daemon read its keys, if that was asked for. Raises Failure when they are not those in ``changed``."""
    run = session()
    if not and_reload:
        run.note("A running daemon takes it into account after glmttsctl reload.")
        return
    try:
        with run.control(timeout=30.0) as control:
            read = plain(control.call("reload")).get("authorised_keys")
    except DaemonNotRunning:
        run.note("No daemon runs here: the next one reads its keys when it starts.")
        return
    if not read:
        raise Failure(
            f"{changed} is changed, but the daemon that runs here reads no keys: it was started without [tcp] listen "
            "or without a key of its own (glmttsctl key server), or its configuration names none of them any more. "
            "Set them, and restart it."
        )
    if not _is_same(Path(read), changed):
        raise Failure(
            f"{changed} is changed, but the daemon that runs here reads its keys from {read}, so nothing has changed "
            "for it. Leave out --config to work on its own; --endpoint names another daemon."
        )
    run.note("The daemon has read its keys again.")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
