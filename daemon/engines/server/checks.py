"""Whether a speech server can be started and reached as the configuration says."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from ..checks import Check, EngineChecks, Workplace, ok, warning, wrong
from .rules import is_loopback, port_of, problems, program

_TIMEOUT_S = 2.0


class ServerChecks(EngineChecks):
    """The program that starts the server, or the server that runs already."""

    def files(self, place: Workplace) -> list[Check]:
        """The rules of the configuration, and whether texts leave this machine unencrypted."""
        settings = place.settings
        found = [
            wrong("speech server", problem, "no worker can start") for problem in problems(settings, several=False)
        ]
        if found:
            return found
        url, command = settings["url"], settings["command"]
        if command:
            found.append(ok("speech server", f"{program(command[0])}, at {url}"))
        if url.startswith("http:") and not is_loopback(url):
            means = "the network can read every text and hear every answer"
            found.append(warning("speech server's address", url, means, "serve it by https, or through a tunnel"))
        return found

    def installed(self, place: Workplace) -> list[Check]:
        """Whether a server that is not ours listens; one of ours gets a port when it starts."""
        url = place.settings["url"]
        if place.settings["command"] or next(problems(place.settings, several=False), ""):
            return []
        try:
            with socket.create_connection((urlsplit(url).hostname or "", port_of(url)), _TIMEOUT_S):
                return [ok("speech server", f"{url} listens")]
        except OSError as error:
            remedy = "start the server, or set engine.server.command to have it started"
            return [wrong("speech server", f"{url}: {error.strerror or error}", "no worker gets ready", remedy)]
