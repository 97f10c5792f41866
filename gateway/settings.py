"""The section ``[gateway]`` of the configuration; the daemon reads the rest of the file."""

from __future__ import annotations

import difflib
import grp
import ipaddress
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from glmtts.protocol.toml_words import expectation, key_in_toml, kind, shown, syntax

from .listening import Listen, parse_listen

#: The file that is read if neither ``--config`` nor ``$GLMTTS_CONFIG`` names one.
SYSTEM_FILE = Path("/etc/glmtts/glmtts.toml")
#: OpenAI's names for voices, which programs send without asking.
OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip


class SettingsError(Exception):
    """The configuration can't be used; the message names the file and the key."""


class Settings(Struct, forbid_unknown_fields=True, frozen=True):
    """``[gateway]``; etc/glmtts.toml explains each key."""

    listen: str = "127.0.0.1:8080"
    endpoint: str = ""
    api_keys: str = ""
    anonymous: bool = False
    openwebui_secret: str = ""
    public_lists: bool = True
    cors_origins: list[str] = []
    trusted_proxies: list[str] = []
    voices: dict[str, str] = {}
    prompts_folder: str = ""
    body_mib: Annotated[int, Meta(ge=1, le=1_024)] = 32
    connections_per_address: Annotated[int, Meta(ge=1, le=100_000)] = 256


def find(file: str | None) -> Path | None:
    """The configuration to read; None for the built-in defaults."""
    name = file or os.environ.get("GLMTTS_CONFIG") or (str(SYSTEM_FILE) if SYSTEM_FILE.exists() else "")
    return Path(name).absolute() if name else None


def read(path: Path | None) -> Settings:
    """Read and check ``[gateway]``. Raises SettingsError, with a line for each mistake."""
    if path is None:
        return Settings()
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8, which TOML files are written in: {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {syntax(str(error))}") from None
    problems = list(_problems(document))
    if problems:
        raise SettingsError("\n".join(f"{path}: {problem}" for problem in problems))
    return msgspec.convert(document.get("gateway", {}), Settings)


def may_listen(chosen: Settings, listen: Listen) -> bool:
    """Whether the gateway starts at this address: on the loopback interface, with keys, or with ``anonymous``."""
    return listen.is_loopback or bool(chosen.api_keys) or chosen.anonymous


def why_it_may_not(place: str) -> str:
    """The reason, for an address at which the gateway does not start (:func:`may_listen`)."""
    return (
        f"gateway.listen: {place} is open to other machines, and everybody there could speak. Set gateway.api_keys to "
        "a file of keys ('glmttsctl apikey new NAME' makes one), or gateway.anonymous = true to serve each address"
    )


def keys_problem(file: str, error: Exception) -> str:
    """Why the file of keys can't be used, and what to do."""
    match error:
        case FileNotFoundError():
            return f"there is no file {file}; 'glmttsctl apikey new NAME --file {file}' makes it, with a key in it"
        case PermissionError():
            return f"user {user_name(os.geteuid())} may not read {file}: chown root:{_group()}, chmod 640"
        case OSError():
            return f"{file} can't be read: {error.strerror}"
        case UnicodeDecodeError():
            return f"{file}: not UTF-8, which TOML files are written in"
    return f"{file}: {error}"


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group() -> str:
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())


def _problems(document: dict[str, Any]) -> Iterator[str]:
    section = document.get("gateway", {})
    if not isinstance(section, dict):
        yield f"gateway: expected a section, written [gateway], got {kind(section)}"
        return
    if "gateway" not in document and (near := difflib.get_close_matches("gateway", document, 1, 0.8)):
        yield f"{key_in_toml(near[0])}: unknown section; did you mean gateway?"
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name, value in section.items():
        path = f"gateway.{key_in_toml(name)}"
        if name not in fields:
            near = difflib.get_close_matches(name.lower().replace("-", "_"), fields, 1, 0.6)
            hint = f"did you mean gateway.{near[0]}?" if near else f"its keys are {', '.join(fields)}"
            yield f"{path}: unknown key; {hint}"
        elif name == "voices" and isinstance(value, dict):
            for alias, voice in value.items():
                if not isinstance(voice, str):
                    yield f"{path}.{key_in_toml(alias)}: expected a voice's name in quotes, got {shown(voice)}"
        else:
            try:
                msgspec.convert(value, fields[name].type)
            except msgspec.ValidationError as error:
                yield f"{path}: {expectation(str(error), value, fields[name].type)}"
            else:
                yield from (f"{path}: {problem}" for problem in _CHECKS.get(name, _no_problem)(value))


def _no_problem(_: Any) -> Iterator[str]:
    yield from ()


def _of_listen(listen: str) -> Iterator[str]:
    try:
        parse_listen(listen)
    except ValueError as error:
        yield str(error)


def _of_endpoint(endpoint: str) -> Iterator[str]:
    if endpoint and not re.fullmatch(r"ipc:///.+|tcp://.+:[0-9]+", endpoint):
        yield f'{shown(endpoint)} is no endpoint; use "ipc:///run/glmtts/glmtts.sock" or "tcp://HOST:PORT"'


def _of_path(path: str) -> Iterator[str]:
    if path and not path.startswith("/"):
        yield f"{shown(path)} is relative, but a service has no working folder; write an absolute path"


def _of_prompts_folder(folder: str) -> Iterator[str]:
    yield from _of_path(folder)
    if folder.startswith("/") and not Path(folder).is_dir():
        yield f"there is no folder {shown(folder)} that user {user_name(os.geteuid())} can see"


def _of_cors_origins(origins: list[str]) -> Iterator[str]:
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+", origin):
            yield (
                f"{shown(origin)} is no origin as browsers send it; write each site as "
                '"https://app.example.com", in small letters, with its port if it has one and nothing behind'
            )


def _of_trusted_proxies(networks: list[str]) -> Iterator[str]:
    for network in networks:
        try:
            if network != "unix":
                ipaddress.ip_network(network)
        except ValueError:
            yield f"{shown(network)} is no network{_meant(network)}"


def _meant(network: str) -> str:
    try:
        return f'; did you mean "{ipaddress.ip_network(network, strict=False)}"?'
    except ValueError:
        return '; write addresses such as "127.0.0.1" or "10.0.0.0/8", or "unix" for a proxy at the unix socket'


_CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "listen": _of_listen,
    "endpoint": _of_endpoint,
    "api_keys": _of_path,
    "openwebui_secret": _of_path,
    "prompts_folder": _of_prompts_folder,
    "cors_origins": _of_cors_origins,
    "trusted_proxies": _of_trusted_proxies,
}
