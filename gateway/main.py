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

from glmtts.protocol.api_keys import ApiKeyProblem
from glmtts.protocol.inherited import put_right, raise_descriptor_limit

from . import __version__, settings

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
            f"gateway. Install its packages: {sys.executable} -m pip install {' '.join(_packages())}",
            file=sys.stderr,
        )
        return _EX_CONFIG
    try:
        chosen = settings.read(settings.find(options.config))
        listen = settings.parse_listen(options.listen or chosen.listen)
        # The service manager's sockets are used in place of `listen`, and are checked in place of it.
        sockets = service_manager.inherited()
        for place in [_place(inherited) for inherited in sockets] or [options.listen or chosen.listen]:
            if not (settings.parse_listen(place).is_loopback or chosen.api_keys or chosen.anonymous):
                raise settings.SettingsError(
                    f"[gateway] listen: {place} is open to other machines, and everybody there could speak. Set "
                    "[gateway] api_keys (glmttsctl apikey new NAME makes a key), or anonymous = true"
                )
        customers = Customers(chosen)
        application = app.build(chosen, customers)
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        return _EX_CONFIG
    except (ApiKeyProblem, OSError, UnicodeDecodeError) as error:
        print(f"{chosen.api_keys}: {error}", file=sys.stderr)
        return _EX_CONFIG
    if options.check:
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    serving = server(application, chosen, listen, customers.reload)
    where = listen.path or f"http://{listen.host}:{listen.port}"
    if sockets:
        where = f"{', '.join(map(_place, sockets))} (of the service manager)"
    _log.info("gateway serves at %s", where)
    # The server finishes its answers at the signal, and then raises it anew.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        asyncio.run(serving.serve(sockets=sockets or None))
    except OSError as error:
        _log.error("gateway can't listen at %s: %s", where, error.strerror)
        return _EX_UNAVAILABLE
    except KeyboardInterrupt:
        pass
    return 0 if serving.started else _EX_UNAVAILABLE


def _place(inherited: socket.socket) -> str:
    """Where an inherited socket listens, as ``listen`` has it."""
    name = inherited.getsockname()
    if inherited.family == socket.AF_UNIX:
        return name if name.startswith("/") else "/"  # an abstract one
    return f"[{name[0]}]:{name[1]}" if inherited.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def _packages() -> list[str]:
    """The packages of the extra ``gateway``."""
    of_extra = (line for line in requires("glmtts-supervisor") or [] if 'extra == "gateway"' in line)
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in of_extra]


if __name__ == "__main__":
    sys.exit(main())
