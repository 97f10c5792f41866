"""`glmttsctl key`: the keys of the daemon and of the clients that may connect to it by TCP."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from glmtts.client import DaemonNotRunning, Forbidden
from glmtts.protocol import authorised_keys, keys
from glmtts.protocol.authorised_keys import Entry
from glmtts.protocol.keys import KeyProblem

from .failures import Failure
from .live_config import daemon_config, live_config
from .session import QUICK_TIMEOUT_S, session, shared_options
from .ui.wrap import fold, terminal_width

F = TypeVar("F", bound=Callable[..., Any])

_SECRET_MODE = 0o600
_PUBLIC_MODE = 0o644

_FORCE = click.option("--force", is_flag=True, help="Replace an existing key, which then stops working.")
_RELOAD = click.option("--reload", "and_reload", is_flag=True, help="Make the running daemon read the keys again.")
_CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The configuration that names the key files.  [that of the running daemon, else the one that a daemon would "
    "find]",
)


@click.group()
def key() -> None:
    """Keys for TCP, and the clients that may connect."""


@key.command()
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write the secret key.")
@_FORCE
@_CONFIG
@shared_options
def server(out: Path | None, config_file: Path | None, force: bool) -> None:
    """Make the daemon's key pair, and print the public key for its clients.

    The daemon uses it from its next start on.
    """
    path = out or _files(config_file)["server_key"]
    public = _make("the daemon", path, force=force)
    _show({"file": str(path), "public_key": public}, public)
    session().note(f"The secret key is in {path}. Clients need the public key: GLMTTS_SERVER_KEY='{public}'")


@key.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it.  [NAME.key]")
@click.option("--authorise", is_flag=True, help="Also add it to the daemon's authorised_keys.")
@_FORCE
@_RELOAD
@_CONFIG
@shared_options
def new(
    name: str, *, out: Path | None, authorise: bool, config_file: Path | None, force: bool, and_reload: bool
) -> None:
    """Make a key pair for the client NAME, and print its line for authorised_keys."""
    _check_name(name)
    path = out or Path(f"{name}.key")
    authorised = _files(config_file)["authorised_keys"] if authorise else None
    if authorised is not None and not force:
        with _key_failures():
            _refuse_known(_entries(authorised), Entry("", name), authorised)
    public = _make(f"client {name}", path, force=force)
    if authorised is not None:
        _add(Entry(public, name), authorised, replace=force)
    line = Entry(public, name).line()
    _show({"name": name, "file": str(path), "public_key": public, "line": line, "authorised": authorise}, line)
    session().note(f"The secret key is in {path}: GLMTTS_SECRET_KEY={path} makes a client use it.")
    if authorised is not None:
        _reload(and_reload, authorised)


@key.command()
@click.argument("name")
@click.argument("publickey")
@_FORCE
@_RELOAD
@_CONFIG
@shared_options
def add(name: str, publickey: str, config_file: Path | None, force: bool, and_reload: bool) -> None:
    """Allow the client with PUBLICKEY to connect, under NAME."""
    _check_name(name)
    if not keys.is_key(publickey):
        raise click.UsageError(f"{publickey[:60]!r} is no public key: 40 characters of Z85, in quotes for the shell.")
    path = _files(config_file)["authorised_keys"]
    _add(Entry(publickey, name), path, replace=force)
    _show({"name": name, "public_key": publickey, "file": str(path)}, f"Added {name} to {path}.")
    _reload(and_reload, path)


@key.command(name="list")
@_CONFIG
@shared_options
def list_keys(config_file: Path | None) -> None:
    """The daemon's public key, and the clients that may connect."""
    files = _files(config_file)
    public = None
    with _key_failures():
        entries = _entries(files["authorised_keys"])
        if files["server_key"].exists():
            public = keys.public_of(keys.read(files["server_key"], "secret"))
    rows = [{"name": entry.name, "public_key": entry.key, "comment": entry.comment} for entry in entries]
    answer = {"server": public, "clients": rows} | {what: str(path) for what, path in files.items()}
    session().show(answer, _print_list)


def _print_list(answer: dict[str, Any]) -> None:
    from .ui.table import print_table

    public = answer["server"] or "no key yet; glmttsctl key server makes one"
    click.echo(fold(f"daemon: {public}  ({answer['server_key']})", terminal_width()))
    none = f"No client may connect: {answer['authorised_keys']} has no keys."
    print_table(answer["clients"], ("name", "public_key", "comment"), none=none)


@key.command()
@click.argument("name")
@_RELOAD
@_CONFIG
@shared_options
def remove(name: str, config_file: Path | None, and_reload: bool) -> None:
    """Remove the client NAME; the daemon disconnects it when it reads the keys again."""
    path = _files(config_file)["authorised_keys"]
    with _key_failures(), _locked(path.parent):
        gone = [entry for entry in _entries(path) if entry.name == name]
        if not gone:
            raise Failure(f"{path}: no key has the name {name}; glmttsctl key list shows the names.")
        _edit(path, gone, [])
    _show({"name": name, "public_key": gone[0].key, "file": str(path)}, f"Removed {name} from {path}.")
    _reload(and_reload, path)


def _files(config_file: Path | None) -> dict[str, Path]:
    """The paths of ``server_key`` and ``authorised_keys``, by a configuration.

    Without a named one it is that of the running daemon, which may differ from the one that this user's environment
    would give a new daemon.
    """
    if config_file is not None:
        return _files_by(str(config_file), {})
    try:
        live = live_config(session(), QUICK_TIMEOUT_S)
    except (DaemonNotRunning, Forbidden) as error:
        files = _files_by(None, {})
        reason = "No daemon runs here" if isinstance(error, DaemonNotRunning) else "This user may not ask the daemon"
        session().note(f"{reason}: these are the keys in {_folders(files)}, as a daemon of this user would find them.")
        return files
    files = _files_by(live.file, live.environment)
    session().note(f"The running daemon has its keys in {_folders(files)}.")
    return files


def _files_by(file: str | None, environment: dict[str, str]) -> dict[str, Path]:
    done = daemon_config("keys", *([] if file is None else [file]), environment=environment)
    if done.returncode:
        raise Failure(f"The configuration is wrong, so its keys can't be found:\n{done.stderr.strip()}")
    return {what: Path(path) for what, path in json.loads(done.stdout).items()}


def _folders(files: dict[str, Path]) -> str:
    return " and ".join(dict.fromkeys(str(path.parent) for path in files.values()))


def _check_name(name: str) -> None:
    if not authorised_keys.NAME.fullmatch(name):
        raise click.UsageError(f"{name[:60]!r} is no name: letters and digits, then also _.@-, at most 64 in all.")


def _make(whose: str, path: Path, *, force: bool) -> str:
    """Write a new pair, over an existing one only with ``force``. Returns the public key."""
    public, secret = keys.generate()
    text = f"# The secret key of {whose}. Keep it secret.\n# Its public key: {public}\n{secret}\n"
    try:
        keys.write(path, text, mode=_SECRET_MODE, replace=force)
    except FileExistsError:
        raise Failure(f"{path}: there is a key already, and nothing was overwritten; --force replaces it.") from None
    return public


def _entries(path: Path) -> Sequence[Entry]:
    try:
        return authorised_keys.read(path)
    except FileNotFoundError:
        return []


def _add(entry: Entry, path: Path, *, replace: bool) -> None:
    with _key_failures(), _locked(path.parent):
        known = _entries(path)
        if not replace:
            _refuse_known(known, entry, path)
        _edit(path, [old for old in known if old.name == entry.name or old.key == entry.key], [entry])


def _refuse_known(known: Sequence[Entry], entry: Entry, path: Path) -> None:
    for old in known:
        if old.name == entry.name:
            raise Failure(f"{path}: {old.name} has a key already; choose another name, or replace it with --force.")
        if old.key == entry.key:
            raise Failure(f"{path}: this key is there already, as {old.name}; --force gives it the new name.")


def _edit(path: Path, gone: Sequence[Entry], added: Sequence[Entry]) -> None:
    """Change these lines, and no other."""
    text = path.read_text(encoding="utf-8-sig") if path.exists() else "# PUBLICKEY NAME [COMMENT]\n"
    removed = {entry.key for entry in gone}
    kept = [line for line in text.splitlines() if not removed.intersection(line.split()[:1])]
    kept += [entry.line() for entry in added]
    keys.write(path, "\n".join(kept) + "\n", mode=_PUBLIC_MODE, replace=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One command at a time changes a file in there: of two writes at once, one would be lost."""
    keys.make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _key_failures() -> Iterator[None]:
    """A problem with a file of keys fails the command."""
    try:
        yield
    except KeyProblem as problem:
        raise Failure(str(problem)) from None


def _show(values: dict[str, Any], words: str) -> None:
    session().show(values, lambda _: words)


def _reload(and_reload: bool, changed: Path) -> None:
    """Make the daemon read its keys, if asked to. Raises Failure when it reads others than those in ``changed``."""
    run = session()
    if not and_reload:
        run.note("A running daemon uses it after glmttsctl reload.")
        return
    try:
        read = run.ask("reload", timeout=30.0).get("authorised_keys")
    except DaemonNotRunning:
        run.note("No daemon runs here: the next one reads its keys when it starts.")
        return
    if not read:
        raise Failure(
            f"{changed} is changed, but the running daemon reads no keys: it was started without [tcp] listen or "
            "without a key of its own (glmttsctl key server), or its configuration no longer names them. Set them, and "
            "restart it."
        )
    if not _is_same(Path(read), changed):
        raise Failure(
            f"{changed} is changed, but the running daemon reads its keys from {read}, so nothing has changed for it. "
            "Leave out --config to change its own; --endpoint names another daemon."
        )
    run.note("The daemon has read its keys again.")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
