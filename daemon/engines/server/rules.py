"""The rules of ``[engine.server]``, which the daemon checks when it reads its configuration; nothing heavy."""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from glmtts.protocol.toml_words import quoted

#: Stands for the number of a free port in the command and in the address.
PORT = "{port}"


def problems(settings: dict[str, Any], *, several: bool) -> Iterator[str]:
    """The problems of the section ``[engine.server]``, each beginning with a key.

    ``several``: more than one worker is configured, each with a server of its own.
    """
    command, url = settings["command"], settings["url"]
    if not command and PORT in url:
        yield (
            'engine.server.command: not set, but engine.name is "server"; name the program that starts the server, as '
            "in docs/server-engine.md, or in engine.server.url the port of one that runs already"
        )
        return
    if problem := _url_problem(url):
        yield f"engine.server.url: {problem}"
        return
    if any("\0" in one for one in command):
        yield "engine.server.command: contains a NUL character"
    elif command and program(command[0]) is None:
        yield (
            f"engine.server.command: {quoted(command[0])} is not a program that this user may run; name it by its "
            "absolute path"
        )
    if command and not is_loopback(url):
        yield (
            f"engine.server.url: {quoted(url)} is another machine's, but engine.server.command starts the server on "
            f"this one; write http://127.0.0.1:{PORT}"
        )
    if command and PORT not in url and several:
        yield (
            f"engine.server.url: every worker would start its server at the same port; write {PORT} for it here and in "
            "engine.server.command"
        )
    if command and PORT in url and not any(PORT in one for one in command):
        yield (
            f"engine.server.command: engine.server.url has {PORT}, which stands for a free port, but the command does "
            f"not tell it to the server; add an argument such as {quoted(f'--port={PORT}')}"
        )
    if any(not 0 < len(voice) <= 64 or not voice.isprintable() for voice in settings["voices"]):
        yield "engine.server.voices: a voice has a name of 1 to 64 printable characters"
    key = settings["api_key_file"]
    if key.startswith("/") and "\0" not in key and not os.access(key, os.R_OK):
        yield f"engine.server.api_key_file: {quoted(key)} is not a file that this user may read; write the key into it"


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own, by its name alone."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url_problem(url: str) -> str:
    shown = quoted(url)
    try:
        where = urlsplit(url.replace(PORT, "1"))
        port_of(url.replace(PORT, "1"))
    except ValueError:
        return f"{shown} is no address; write one such as http://127.0.0.1:{PORT}"
    if where.scheme not in ("http", "https") or not where.hostname or not url.isprintable():
        return f"{shown} is no address of HTTP; write one such as http://127.0.0.1:{PORT}"
    if where.username or where.query or where.fragment:
        return f"{shown} has more than host, port and path; a key belongs into engine.server.api_key_file"
    if PORT in url and PORT not in urlsplit(url).netloc.rpartition(":")[2]:
        return f"{shown} has {PORT} in another place than the port's"
    return ""


def program(name: str) -> str | None:
    """The path of the program that a command names; None if this user can't run it."""
    # The worker's working folder is /.
    return shutil.which(name) if "/" not in name or name.startswith("/") else None


def port_of(url: str) -> int:
    """The port of an address, also one that it does not name. Raises ValueError."""
    where = urlsplit(url)
    return where.port or (443 if where.scheme == "https" else 80)
