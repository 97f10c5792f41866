"""The file of the clients that may connect by TCP: a line for each, with its public key, its name and a comment."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from .keys import KeyProblem, is_comment, is_key

#: The name of a client. It appears as ``key:NAME``, which is no user's name, as those have no colon.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")

#: A few thousand clients; a larger file is a wrong path.
_MAX_FILE_BYTES = 1024 * 1024
_MAX_PROBLEMS = 20


class Entry(NamedTuple):
    """A client that may connect."""

    key: str
    name: str
    comment: str = ""

    def line(self) -> str:
        """The entry as a line of the file."""
        return " ".join(filter(None, self))


def parse(text: str, path: Path) -> list[Entry]:
    """The entries of a file. Raises KeyProblem with a line for each bad line, as ``FILE:LINE: ...``."""
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if is_comment(line):
            continue
        entry = Entry(*line.split(maxsplit=2)[:3]) if len(line.split()) > 1 else Entry(line.strip(), "")
        problem = _problem(entry)
        for what, value in (("key", f"key {entry.key}"), ("name", f"name {entry.name}")):
            if not problem and value in lines:
                problem = f"line {lines[value]} has this {what} already"
        if problem:
            problems.append(f"{path}:{number}: {problem}")
        else:
            entries.append(entry)
            lines |= {f"key {entry.key}": number, f"name {entry.name}": number}
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [f"{path}: and {len(problems) - _MAX_PROBLEMS} more bad lines"]
    if problems:
        raise KeyProblem("\n".join(problems))
    return entries


def read(path: Path) -> list[Entry]:
    """The entries of the file. Raises KeyProblem, and FileNotFoundError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyProblem(f"{path}: can't be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise KeyProblem(f"{path}:{line}: not UTF-8") from None
    if mode & stat.S_IWOTH:
        raise KeyProblem(
            f"{path}: every user may write this file, and so admit clients; chmod o-w it, and check its keys"
        )
    if len(data) > _MAX_FILE_BYTES:
        raise KeyProblem(f"{path}: larger than 1 MiB: not a list of keys")
    return parse(text, path)


def _problem(entry: Entry) -> str:
    if not is_key(entry.key):
        hint = "; it looks like a name: the key comes first" if is_key(entry.name) else ""
        return f"{entry.key[:60]!r} is no public key: one has 40 characters of Z85{hint}"
    if not entry.name:
        return "the key has no name; write one after it, such as alice-laptop"
    if not NAME.fullmatch(entry.name):
        return f"{entry.name[:60]!r} is no name: letters, digits, and _.@- after the first, 64 at most"
    return ""
