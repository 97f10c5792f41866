"""CURVE keys, in the 40 characters of Z85 (ZeroMQ RFC 32), and their files.

A key file has one key on a line of its own; lines that begin with ``#`` are comments. The file of a secret key is only
accessible to its owner.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import string
from pathlib import Path
from typing import Literal

#: The alphabet of Z85. A key may begin with ``#``; a comment differs from it in length.
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

#: A larger file is a wrong path.
_MAX_FILE_BYTES = 64 * 1024

_MODE_OF_OTHERS = 0o077


class KeyProblem(ValueError):
    """A key, or its file, can't be used; the message has the reason and the remedy."""


def is_key(text: str) -> bool:
    """Whether ``text`` has the form of a key."""
    return _KEY.fullmatch(text) is not None


def is_comment(line: str) -> bool:
    """Whether a line of a key file is blank or a comment; one key in 85 begins with ``#`` too."""
    words = line.split(maxsplit=1)
    return not words or (words[0].startswith("#") and not is_key(words[0]))


def generate() -> tuple[str, str]:
    """A new pair, public and secret.

    Both begin with a letter, so that no program parses them as a comment or an option. That costs a bit of 256.
    """
    import zmq

    while True:
        public, secret = (key.decode("ascii") for key in zmq.curve_keypair())
        if public[0] in string.ascii_letters and secret[0] in string.ascii_letters:
            return public, secret


def public_of(secret: str) -> str:
    """The public key of a secret one."""
    import zmq

    return zmq.curve_public(secret.encode("ascii")).decode("ascii")


def resolve(key: str | os.PathLike[str], kind: Literal["secret", "public"]) -> str:
    """The key that ``key`` is, or whose file it names. Raises KeyProblem."""
    if isinstance(key, str) and is_key(key) and not Path(key).is_file():
        return key
    return read(Path(key), kind)


def read(path: Path, kind: Literal["secret", "public"]) -> str:
    """The key in a file. Raises KeyProblem, also for a secret key that other users may read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyProblem(f"{path}: the {kind} key can't be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise KeyProblem(
            f"{str(path)[:60]!r}: neither a key of 40 characters nor the path of a file: {error}"
        ) from None
    if kind == "secret" and stat.S_IMODE(mode) & _MODE_OF_OTHERS:
        raise KeyProblem(f"{path}: other users may read this secret key; chmod 600 it, or make a new one")
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if not is_comment(line)]
    if len(data) > _MAX_FILE_BYTES or len(lines) != 1 or not is_key(lines[0]):
        raise KeyProblem(f"{path}: not a key file: that has one line with a key of 40 characters, and comments after #")
    return lines[0]


def write(path: Path, text: str, *, mode: int, replace: bool) -> None:
    """Write a file atomically; ``replace``: an existing file too. Creates the folder. Raises OSError.

    A file that root writes gets the owner of its folder, so that the daemon can read it.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Create a folder for keys, and its parents, which everybody may enter."""
    if folder.is_dir():
        return
    make_folder(folder.parent, 0o755)
    folder.mkdir(mode=mode, exist_ok=True)
    if os.geteuid() == 0:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
