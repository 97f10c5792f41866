"""`glmttsctl apikey`: the keys with which programs use the HTTP gateway."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import click

from glmtts.client.files import write_whole
from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey, ApiKeyProblem

from .failures import Failure
from .session import session, shared_options
from .ui.table import print_table

_FILE = click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/etc/glmtts/api_keys.toml"),
    show_default=True,
    metavar="FILE",
    help="The file that [gateway] api_keys names.",
)


@click.group()
def apikey() -> None:
    """API keys for the HTTP gateway."""


@apikey.command()
@click.argument("name")
@click.option("--forwards-users", is_flag=True, help="A chat front end: it may name the user that it speaks for.")
@click.option("--vip", is_flag=True, help="It may use the class vip too.")
@_FILE
@shared_options
def new(name: str, *, forwards_users: bool, vip: bool, file: Path) -> None:
    """Make a key for the customer NAME, and print it, once.

    The file keeps the key's SHA-256 alone. A running gateway reads the file when it has changed.
    """
    known = _read(file, may_be_missing=True)
    if any(key.name == name for key in known):
        raise Failure(
            f"{file} has a key of {name} already; 'glmttsctl apikey remove {name}' first, or choose another name."
        )
    key = api_keys.new_key()
    entry = ApiKey(
        name=name,
        sha256=api_keys.digest(key),
        forwards_users=forwards_users,
        priorities=("vip", "interactive", "batch") if vip else ("interactive", "batch"),
    )
    text = (file.read_text(encoding="utf-8") if file.exists() else "") + api_keys.entry(entry)
    try:
        api_keys.parse(text)
    except ApiKeyProblem:
        raise click.UsageError("A name has 1 to 64 letters, digits and any of . _ @ - in it.") from None
    _write(file, text)
    run = session()
    run.show({"name": name, "key": key, "file": str(file)}, lambda answer: str(answer["key"]))
    run.note(f"The key of {name} is shown this once. Programs send it as OPENAI_API_KEY, or 'Authorization: Bearer'.")


@apikey.command()
@click.argument("name")
@_FILE
@shared_options
def remove(name: str, *, file: Path) -> None:
    """Remove the key of the customer NAME: a running gateway refuses it from then on."""
    if not any(key.name == name for key in _read(file, may_be_missing=False)):
        raise Failure(f"{file} has no key of {name}; 'glmttsctl apikey list --file {file}' shows whose there are.")
    try:
        _write(file, api_keys.without(file.read_text(encoding="utf-8"), name))
    except ApiKeyProblem as problem:
        raise Failure(f"{file}: {problem}.") from None
    run = session()
    run.show({"name": name, "file": str(file)}, lambda _: None)
    run.note(f"The key of {name} is removed.")


@apikey.command(name="list")
@_FILE
@shared_options
def list_keys(file: Path) -> None:
    """Show whose keys there are; the keys themselves are not kept."""
    keys = _read(file, may_be_missing=False)
    rows = [
        {"name": key.name, "priorities": ", ".join(key.priorities), "forwards_users": key.forwards_users}
        for key in keys
    ]
    columns = ("name", "priorities", "forwards_users")
    session().show(rows, lambda found: print_table(found, columns, none=f"{file} has no keys."))


def _write(file: Path, text: str) -> None:
    try:
        # The mode and the owner of an existing file stay: the gateway may be another user.
        about = file.stat() if file.exists() else None
        write_whole(file, text.encode())
        file.chmod(0o640 if about is None else about.st_mode & 0o777)
        if os.geteuid() == 0:
            owner = (0, _gateway_group()) if about is None else (about.st_uid, about.st_gid)
            os.chown(file, *owner)
    except FileNotFoundError:
        raise Failure(
            f"There is no folder {file.parent} for the file of keys; make it, or name one by --file."
        ) from None
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None


def _gateway_group() -> int:
    """The group of the gateway's service, which has to read a new file; root's where there is no such service."""
    try:
        return grp.getgrnam("glmtts-gateway").gr_gid
    except KeyError:
        return 0


def _read(file: Path, *, may_be_missing: bool) -> list[ApiKey]:
    if may_be_missing and not file.exists():
        return []
    try:
        return api_keys.parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failure(f"{file} is not there; glmttsctl apikey new NAME makes it, and --file names another.") from None
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    except (ApiKeyProblem, UnicodeDecodeError) as error:
        raise Failure(f"{file}: {error}") from None
