"""`glmttsctl config`: check a file, show what is in force, print the default. The daemon's code reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .failures import FAILED, Finished
from .session import session, shared_options
from .ui.output import plain, print_json


@click.group()
def config() -> None:
    """Check, show and print configurations."""


@config.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@shared_options
def check(file: Path) -> None:
    """Would the daemon start with FILE? Says what is wrong with it, if not."""
    done = _daemon_config("check", str(file))
    good = done.returncode == 0
    words = (done.stdout + done.stderr).strip()
    if session().json:
        # Of a good file, what is said beside that are warnings.
        warnings = done.stderr.splitlines() if good else []
        print_json({"file": str(file), "ok": good, "message": words, "warnings": warnings})
    else:
        click.echo(words, err=not good)
    if not good:
        raise Finished(FAILED)


@config.command()
@shared_options
def show() -> None:
    """The configuration that the running daemon has in force."""
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.call("config"))
    if run.json:
        print_json(answer)
        return
    click.echo(f"# {answer.get('file') or 'no file: the built-in defaults'}")
    for line in toml_lines(answer.get("config") or {}):
        click.echo(line)


@config.command()
@shared_options
def default() -> None:
    """The default configuration, each key explained; a file to begin with."""
    done = _daemon_config("default")
    if done.returncode:
        click.echo(done.stderr.strip(), err=True)
        raise Finished(FAILED)
    click.echo(done.stdout, nl=False)


def _daemon_config(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The daemon's code is never imported here: a client has to work where the daemon is not installed.
    return subprocess.run(
        [sys.executable, "-m", "glmtts.daemon.config", *arguments], capture_output=True, text=True, check=False
    )


def toml_lines(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """``values`` as TOML, the keys of a section before its subsections, as TOML wants it."""
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
    # JSON's strings, numbers, booleans and lists of them are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
