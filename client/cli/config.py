"""`glmttsctl config`: check a file, show the live configuration, print the default. The daemon's code reads files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from .failures import FAILED, Finished
from .live_config import daemon_config
from .session import session, shared_options


@click.group()
def config() -> None:
    """Check, show and print configurations."""


@config.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@shared_options
def check(file: Path) -> None:
    """Would the daemon start with FILE? If not, what is wrong with it?"""
    done = daemon_config("check", str(file))
    good = done.returncode == 0
    words = (done.stdout + done.stderr).strip()
    # For a good file, stderr has warnings.
    answer = {"file": str(file), "ok": good, "message": words, "warnings": done.stderr.splitlines() if good else []}
    session().show(answer, lambda _: click.echo(words, err=not good))
    if not good:
        raise Finished(FAILED)


@config.command()
@shared_options
def show() -> None:
    """The configuration of the running daemon."""
    run = session()
    run.show(run.ask("config"), _print)


def _print(answer: Mapping[str, Any]) -> None:
    click.echo(f"# {answer.get('file') or 'no file: the built-in defaults'}")
    for line in toml_lines(answer.get("config") or {}):
        click.echo(line)


@config.command()
@shared_options
def default() -> None:
    """The default configuration with an explanation of each key, to start from."""
    done = daemon_config("default")
    if done.returncode:
        click.echo(done.stderr.strip(), err=True)
        raise Finished(FAILED)
    click.echo(done.stdout, nl=False)


def toml_lines(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """``values`` as TOML, which wants the keys of a section before its subsections."""
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    for key, value in values.items():
        if key not in sections and value is not None:
            yield f"{_key(key)} = {_value(value)}"
    for key, section in sections.items():
        name = f"{path}.{_key(key)}" if path else _key(key)
        yield ""
        yield f"[{name}]"
        yield from toml_lines(section, name)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's, except for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
