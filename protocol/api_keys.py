"""API keys of the gateway, and their file: TOML with a table ``[[key]]`` for each, which holds the key's SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from .requests import Priority
from .toml_words import syntax

#: Begins every key, so that it is recognised where it should not be.
PREFIX = "glm-"

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class ApiKeyProblem(ValueError):
    """The file of keys can't be used; the message has the reason."""


class ApiKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key's entry: ``name`` is the customer in the daemon's limits and shares.

    ``forwards_users``: it may name the user that it speaks for. ``priorities``: the classes that it may use.
    """

    name: _Name
    sha256: _Digest
    forwards_users: bool = False
    priorities: tuple[Priority, ...] = ("interactive", "batch")


class _File(Struct, forbid_unknown_fields=True):
    key: list[ApiKey] = []


def new_key() -> str:
    """A new key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """The SHA-256 of a key, as its entry has it. The key is random, so that it needs neither salt nor a slow hash."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def parse(text: str) -> list[ApiKey]:
    """The entries of a file. Raises ApiKeyProblem."""
    try:
        keys = msgspec.convert(tomllib.loads(text), _File).key
    except tomllib.TOMLDecodeError as error:
        raise ApiKeyProblem(syntax(str(error))) from None
    except msgspec.ValidationError as error:
        raise ApiKeyProblem(str(error)) from None
    names = [key.name for key in keys]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise ApiKeyProblem(f"the name {repeated} is there twice; each key needs its own")
    return keys


def entry(key: ApiKey) -> str:
    """The lines for a key, to be appended to a file."""
    priorities = ", ".join(f'"{priority}"' for priority in key.priorities)
    forwards = f"forwards_users = {'true' if key.forwards_users else 'false'}\n"
    return f'\n[[key]]\nname = "{key.name}"\nsha256 = "{key.sha256}"\n{forwards}priorities = [{priorities}]\n'


def without(text: str, name: str) -> str:
    """The text of a file without the key of this name; comments stay. Raises ApiKeyProblem."""
    kept: list[str] = []
    for part in re.split(r"(?m)^(?=[ \t]*\[\[key\]\])", text):
        if any(key.name == name for key in parse(part)):
            # The lines at its end are about the next key.
            lines = part.splitlines(keepends=True)
            last = max(
                number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")
            )
            kept += lines[last + 1 :]
        else:
            kept.append(part)
    left = "".join(kept)
    if parse(left) != [key for key in parse(text) if key.name != name]:
        raise ApiKeyProblem(f"the lines of {name} are not written as [[key]]; remove them by hand")
    return left


def find(keys: Iterable[ApiKey], key: str) -> ApiKey | None:
    """The entry of a key, in a time that does not tell how near a wrong one comes."""
    found, wanted = None, digest(key)
    for candidate in keys:
        if hmac.compare_digest(candidate.sha256, wanted):
            found = candidate
    return found
