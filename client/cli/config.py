"""`glmttsctl config`: check a file, show the live configuration, print the default. The daemon's code reads files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from .failures import FAILED, Finished
from .live_config import daemon_config, gateway_checks, start_checks
from .session import session, shared_options


@click.group()
def config() -> None:
    """Check, show and print configurations."""


@config.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@shared_options
def check(file: Path) -> None:
    """Would the daemon start with FILE, and speak? If not, what is wrong?

    Looks at the engine's files and what is installed for it, too, and at the state folder; `glmttsctl doctor --config`
    also at the GPUs. Exits with 1 if something is wrong; warnings alone are 0.
    """
    done = daemon_config("check", str(file))
    good = done.returncode == 0
    # For a good file, stderr has warnings.
    lines, warnings = (done.stdout + done.stderr).strip().splitlines(), done.stderr.splitlines() if good else []
    checks = start_checks(str(file)) if good else []
    found = [one for one in checks if one.get("name") not in _OF_THE_FILE and one.get("state") != "ok"]
    more = [f"{file}: warning: {_in_words(one)}" for one in found if one["state"] == "warning"]
    # Another program's section: the daemon starts all the same.
    of_gateway = gateway_checks(str(file), settings_alone=True) if good else []
    more += [f"{file}: warning: {one['seen']}" for one in of_gateway]
    wrong = [f"{file}: {_in_words(one)}" for one in found if one["state"] == "wrong"]
    if wrong:
        good, lines = False, [line for line in lines if line in warnings]
    words = "\n".join([*wrong, *lines, *more])
    answer = {"file": str(file), "ok": good, "message": words, "warnings": warnings + more}
    session().show(answer, lambda _: click.echo(words, err=not good))
    if not good:
        raise Finished(FAILED)


#: Findings about the file itself, which `daemon_config` has told already.
_OF_THE_FILE = ("configuration", "names in the configuration")


def _in_words(check: Mapping[str, str]) -> str:
    """``engine's python: /usr/bin/python: Python 3.9: too old for a worker; set [engine] python to ...``."""
    words = ": ".join(check[key] for key in ("name", "seen", "means") if check.get(key))
    return f"{words}; {check['mend']}" if check.get("mend") else words


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
