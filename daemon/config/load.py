"""Configuration files: found, read, and refused with every problem named by file, key and nearest valid name.

The daemon reads its file before it accepts connections, so nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct

from glmtts.protocol.keys import KeyProblem
from glmtts.protocol.text_encodings import conversion
from glmtts.protocol.toml_words import expectation, key_in_toml, kind, shown, syntax

from ..core.settings import Section, Settings, flat
from . import tcp_access
from .ranges import RANGES
from .rules import combinations

#: The file that is read if neither ``--config`` nor ``$GLMTTS_CONFIG`` names one.
SYSTEM_FILE = Path("/etc/glmtts/glmtts.toml")

#: A larger file is not a configuration, but perhaps a recording.
_MAX_FILE_BYTES = 1024 * 1024

#: The keys of one client begin with it.
_CLIENT = re.compile(r"^limits\.clients\..*\.")


class Config(Struct, frozen=True):
    """Settings, their file (None: the built-in defaults), and the clients that may connect by TCP (None: none)."""

    settings: Settings
    file: Path | None
    tcp: tcp_access.Access | None = None


class ConfigError(Exception):
    """The configuration can't be used; ``problems`` has a line for each mistake in it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def find(file: str | Path | None = None) -> Path | None:
    """The absolute path of the configuration to read; None for the built-in defaults.

    Args:
        file: as a command line names it. None looks for ``$GLMTTS_CONFIG``, then for :data:`SYSTEM_FILE`; ``""`` is
            the built-in defaults. Links are kept, so that a reload follows them anew.
    """
    if file is None:
        file = os.environ.get("GLMTTS_CONFIG") or (SYSTEM_FILE if SYSTEM_FILE.exists() else "")
    if not file:
        return None
    try:
        return Path(file).absolute()
    except FileNotFoundError:
        return Path(file)  # the working directory was removed; reading the file reports it


def read(path: Path | None) -> Config:
    """Read and check a configuration, and the key files that it names; None gives the built-in defaults.

    Raises ConfigError with all problems at once.
    """
    if path is None:
        state_dir(Settings())
        return Config(Settings(), None)
    try:
        settings = parse(read_text(path))
        return Config(settings, path, tcp_access.load(settings.tcp, state_dir(settings)))
    except ConfigError as error:
        problems = error.problems
    except KeyProblem as error:
        problems = str(error).splitlines()
    raise ConfigError([f"{path}: {problem}" for problem in problems])


def parse(text: str) -> Settings:
    """The settings in a TOML text. Raises ConfigError, with problems that begin with the key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([syntax(str(error))]) from None
    except RecursionError:
        raise ConfigError(["not TOML: nested too deeply"]) from None
    # Another program's; glmtts-gateway checks it.
    document.pop("gateway", None)
    problems: list[str] = []
    good = check_section(document, Settings, "", problems)
    # Combinations are checked in the valid sections too, so that all problems are reported at once.
    settings = msgspec.convert(good, Settings)
    problems += combinations(settings, set(_keys(good)))
    if problems:
        raise ConfigError(problems)
    return settings


def state_dir(settings: Settings) -> Path:
    """The folder of all that outlives the daemon.

    The first that is set: ``[daemon] state_dir``, ``$STATE_DIRECTORY`` (systemd), /var/lib/glmtts for root,
    ``$XDG_STATE_HOME/glmtts``, ~/.local/state/glmtts. Raises ConfigError for a user without a home folder.
    """
    if settings.daemon.state_dir:
        return Path(settings.daemon.state_dir).absolute()
    if from_systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(from_systemd.split(":")[0]).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/glmtts")
    xdg = os.environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    if xdg.startswith("/"):
        return Path(xdg) / "glmtts"
    try:
        return Path("~/.local/state/glmtts").expanduser()
    except RuntimeError:
        raise ConfigError(
            [
                f"daemon.state_dir: not set, and user {os.geteuid()} has no home folder for it (HOME is not set, and "
                "/etc/passwd has no such user): set it, or the variable HOME or XDG_STATE_HOME, to a folder that this "
                "user can write"
            ]
        ) from None


def outputs_dir(settings: Settings) -> Path:
    """The folder in which ``output`` writes files."""
    return Path(settings.audio.outputs).absolute() if settings.audio.outputs else state_dir(settings) / "outputs"


def results_dir(settings: Settings) -> Path:
    """The folder of the results of durable jobs."""
    return state_dir(settings) / "results"


def voices_dir(settings: Settings) -> Path:
    """The folder of the registered voices."""
    return Path(settings.voices.folder).absolute() if settings.voices.folder else state_dir(settings) / "voices"


def own_voices_dir(settings: Settings) -> Path:
    """The folder of the voices that clients keep for themselves."""
    return state_dir(settings) / "own_voices"


def cache_dir(settings: Settings) -> Path:
    """The folder of files that workers share; it may be deleted while no daemon runs."""
    return state_dir(settings) / "cache"


def engine_python(settings: Settings) -> str:
    """The interpreter that runs the workers."""
    return settings.engine.python or sys.executable


def packaged_default() -> str:
    """The text of the packaged etc/glmtts.toml."""
    import glmtts.etc

    # importlib.resources takes longer than the whole check, and can't read every editable install.
    folders = [Path(folder) for folder in glmtts.etc.__path__]
    return next(path for folder in folders if (path := folder / "glmtts.toml").is_file()).read_text(encoding="utf-8")


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "; glmttsctl config default prints one to begin with" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError([f"can't be read: {reason}{hint}"]) from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(["larger than 1 MiB: not a configuration file"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = data.splitlines()[line - 1 : line] or [data]
        words = (
            f"line {line}: not UTF-8, which TOML files are written in. {conversion(data, bad[0], path, 'utf8.toml')}"
        )
        raise ConfigError([words]) from None


# --- tables and keys


def check_section(table: dict[str, Any], section: type[Section], prefix: str, problems: list[str]) -> dict[str, Any]:
    """The valid part of ``table``; adds a line to ``problems`` for each mistake."""
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    good: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{prefix}{key_in_toml(name)}"
        if name not in fields:
            problems.append(f"{path}: {_unknown(name, value, prefix, list(fields))}")
        elif (named := _named_sections(fields[name].type)) and isinstance(value, dict):
            good[name] = _sections(value, named, path, problems)
        elif isinstance(fields[name].type, type) and issubclass(fields[name].type, Section):
            if isinstance(value, dict):
                good[name] = check_section(value, fields[name].type, f"{path}.", problems)
            else:
                problems.append(f"{path}: expected a section, written [{path}], got {kind(value)}")
        elif problem := _value(value, fields[name].type, path):
            problems.append(f"{path}: {problem}")
        else:
            good[name] = value
    return good


def _named_sections(expected: Any) -> type[Section] | None:
    """The type of the sections under a key that has one for each name; None for another key."""
    of = get_args(expected)[1] if get_origin(expected) is dict else None
    return of if isinstance(of, type) and issubclass(of, Section) else None


def _sections(table: dict[str, Any], section: type[Section], path: str, problems: list[str]) -> dict[str, Any]:
    good: dict[str, Any] = {}
    for name, value in table.items():
        below = f"{path}.{key_in_toml(name)}"
        if isinstance(value, dict):
            good[name] = check_section(value, section, f"{below}.", problems)
        else:
            keys = ", ".join(field.name for field in msgspec.structs.fields(section))
            problems.append(f"{below}: expected a section, written [{path}.NAME], with {keys}; got {kind(value)}")
    return good


def _value(value: Any, expected: Any, path: str) -> str:
    """The problem of a key's value, or ``""``."""
    allowed = RANGES.get(_CLIENT.sub("limits.clients.NAME.", path))
    if allowed and (problem := allowed.problem(value)):
        return problem
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        if path in _EXPECTED:
            return f"expected {_EXPECTED[path]}, got {shown(value)}"
        return expectation(str(error), value, expected)
    except RecursionError:
        return "nested too deeply"
    return ""


#: The expected value of keys whose type does not tell.
_EXPECTED = {
    "workers.gpus": '"all", "none" or a list of GPU numbers such as [0, 1]',
    "daemon.socket_mode": 'an octal mode in quotes such as "0660"',
}

_DEFAULTS: dict[str, Any] = flat(Settings())
_SECTIONS = sorted({path[: match.start()] for path in _DEFAULTS for match in re.finditer(r"\.", path)} | {"gateway"})


def _unknown(name: str, value: Any, prefix: str, siblings: list[str]) -> str:
    what, candidates = ("section", _SECTIONS) if isinstance(value, dict) else ("key", list(_DEFAULTS))
    plain = name.lower().replace("-", "_")
    leaves = {path.rpartition(".")[2]: path for path in candidates}
    near = [f"{prefix}{s}" for s in difflib.get_close_matches(plain, siblings, 1, 0.85)]
    near = near or [path for path in candidates if path.rpartition(".")[2] == plain][:2]
    near = near or [f"{prefix}{s}" for s in difflib.get_close_matches(plain, siblings, 1, 0.6)]
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(plain, leaves, 1, 0.75)]
    hint = f"did you mean {' or '.join(near)}?" if near else "glmttsctl config default lists them all"
    return f"unknown {what}; {hint}"


def _keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that a valid table sets."""
    for name, value in table.items():
        path = f"{prefix}{name}"
        yield from [path] if path in _DEFAULTS else _keys(value, f"{path}.")
