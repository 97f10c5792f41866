"""``glmtts-gateway``: serves speech over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import signal
import socket
import sys
from importlib.metadata import requires
from pathlib import Path

from glmtts.protocol.api_keys import ApiKeyProblem
from glmtts.protocol.inherited import put_right, raise_descriptor_limit

from . import __version__, settings
from .listening import Listen, bind, parse_listen, problem

#: Exit statuses: sysexits(3).
_EX_CONFIG, _EX_UNAVAILABLE = 78, 69

_log = logging.getLogger("glmtts.gateway")


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends it; returns the exit status."""
    put_right()
    raise_descriptor_limit()
    parser = argparse.ArgumentParser(prog="glmtts-gateway", description="Serve speech over HTTP, for the daemon.")
    parser.add_argument("--config", metavar="FILE", help="the configuration, of which [gateway] is read")
    parser.add_argument("--listen", metavar="ADDRESS", help="in place of [gateway] listen")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)  # a socket that `glmttsctl serve` has opened
    parser.add_argument("--check", action="store_true", help="check the configuration and the keys, and end")
    parser.add_argument("--version", action="version", version=f"glmtts-gateway {__version__}")
    options = parser.parse_args(arguments)
    try:
        from . import app, service_manager
        from .customers import Customers
        from .server import server
    except ModuleNotFoundError as error:
        print(
            f"glmtts-gateway can't start: the package {error.name} is missing, as in an installation without the extra "
            f"gateway. Install its packages: {sys.executable} -m pip install {' '.join(packages())}",
            file=sys.stderr,
        )
        return _EX_CONFIG
    try:
        path = settings.find(options.config)
        chosen = settings.read(path)
        listen = _listen(options.listen) if options.listen else parse_listen(chosen.listen)
        # The service manager's sockets are used in place of `listen`, and are checked in place of it.
        sockets = service_manager.inherited() if options.fd is None else [socket.socket(fileno=options.fd)]
        places = [parse_listen(_place(inherited)) for inherited in sockets] or [listen]
        for place in places:
            if not settings.may_listen(chosen, place):
                raise settings.SettingsError(settings.why_it_may_not(f"{place.host}:{place.port}"))
        customers = Customers(chosen)
        application = app.build(chosen, customers)
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        return _EX_CONFIG
    except (ApiKeyProblem, OSError, UnicodeDecodeError) as error:
        print(f"{path}: gateway.api_keys: {settings.keys_problem(chosen.api_keys, error)}", file=sys.stderr)
        return _EX_CONFIG
    where = ", ".join(map(str, places))
    if options.check:
        print(f"{path or 'built-in defaults'}: good; the gateway would serve at {where}")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        serving_at = sockets or bind(listen)
    except OSError as error:
        words = problem(error, listen)
        print(f"glmtts-gateway can't listen at {where}: {words}: [gateway] listen, or --listen", file=sys.stderr)
        return _EX_UNAVAILABLE
    serving = server(application, chosen, customers.reload)
    _log.info("gateway serves at %s%s", where, " (of the service manager)" if sockets and options.fd is None else "")
    # The server finishes its answers at the signal, and then raises it anew.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        asyncio.run(serving.serve(sockets=serving_at))
    except KeyboardInterrupt:
        pass
    finally:
        if listen.path and not sockets:
            Path(listen.path).unlink(missing_ok=True)
    return 0 if serving.started else _EX_UNAVAILABLE


def _listen(option: str) -> Listen:
    try:
        return parse_listen(option)
    except ValueError as error:
        raise settings.SettingsError(f"--listen: {error}") from None


def _place(inherited: socket.socket) -> str:
    """Where an inherited socket listens, as ``listen`` has it."""
    name = inherited.getsockname()
    if inherited.family == socket.AF_UNIX:
        return name if name.startswith("/") else "/"  # an abstract one
    return f"[{name[0]}]:{name[1]}" if inherited.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def packages() -> list[str]:
    """The packages of the extra ``gateway``."""
    of_extra = (line for line in requires("glmtts-supervisor") or [] if 'extra == "gateway"' in line)
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in of_extra]


if __name__ == "__main__":
    sys.exit(main())
