"""`glmttsctl serve`: a daemon and a gateway of one's own, until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shutil
import socket
import sys
import time
import webbrowser
from pathlib import Path

import click

from .failures import Failure
from .private_daemon import PrivateDaemon, private_daemon
from .session import session, shared_options
from .ui.output import print_json
from .ui.signals import EndingSignals, Signalled

_HOST = "127.0.0.1"
_FIRST_PORT = 8080
#: How many ports are tried for one that is free.
_PORTS = 100
_BACKLOG = 2_048
_POLL_S = 0.1
#: Seconds that running requests get at the end: with the private configuration, whose jobs are lost anyway, and with
#: another one, whose daemon has its own time for it ([daemon] drain_timeout_s).
_END_S, _DRAIN_S = 2.0, 35.0


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), metavar="PORT", help="0: any.  [8080, or the next one that is free]"
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A configuration, with its engine, voices and keys, in place of a private one with espeak.",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@shared_options
def serve(open_page: bool, config: Path | None, port: int | None) -> None:
    """Try speech in a browser and over HTTP.

    A daemon and a gateway of their own serve programs on this machine until Ctrl-C, and leave nothing.
    """
    run = session()
    listener = _listen(port)
    port = int(listener.getsockname()[1])
    private = private_daemon("serve", config.absolute() if config else None)
    with EndingSignals() as signals, contextlib.suppress(Signalled), private as daemon:
        try:
            run.note("Starting the daemon and the gateway ...")
            _start(daemon, listener)
            _tell(daemon, port)
            if open_page and not webbrowser.open(f"http://{_HOST}:{port}/"):
                run.note("There is no browser here to open it in.")
            while True:
                daemon.check()
                time.sleep(_POLL_S)
        except Signalled:
            run.note("Stopping ...")
            # A second Ctrl-C does not wait.
            with contextlib.suppress(Signalled):
                signals.arm()
                daemon.end(_DRAIN_S if config else _END_S)
        finally:
            signals.disarm()


def _start(daemon: PrivateDaemon, listener: socket.socket) -> None:
    port, fd = listener.getsockname()[1], listener.fileno()
    with listener:
        daemon.start_program("gateway", "glmtts.gateway.main", "--fd", str(fd), fds=[fd])
    daemon.until_accepting()

    def answers() -> bool:
        connection = http.client.HTTPConnection(_HOST, port, timeout=5.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        return False

    daemon.until("serve HTTP", answers, "gateway")


def _tell(daemon: PrivateDaemon, port: int) -> None:
    url = f"http://{_HOST}:{port}"
    if session().json:
        print_json({"url": f"{url}/", "endpoint": daemon.endpoint, "folder": str(daemon.folder)})
        return
    # A clone's commands are not in PATH.
    command = "glmttsctl" if shutil.which("glmttsctl") else sys.argv[0]
    click.secho(f"\n  Open {url}/ in a browser.\n", bold=True)
    click.echo(f"""\
  curl {url}/v1/audio/speech -d '{{"input": "今天天气不错。"}}' -o weather.mp3
  {command} --endpoint {daemon.endpoint} status
""")
    if "SSH_CONNECTION" in os.environ:
        click.echo(f"  From the machine that you sit at: ssh -L {port}:{_HOST}:{port} {socket.gethostname()}\n")
    click.echo(f"  The logs are in {daemon.folder}. Ctrl-C ends the service and removes the folder.")


def _listen(chosen: int | None) -> socket.socket:
    """A socket that listens, at the chosen port or the first one that is free: of two at once each has its own."""
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS) if chosen is None else [chosen]:
        try:
            return socket.create_server((_HOST, port), backlog=_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Failure(f"Port {port} can't be used: {error.strerror}. Choose another: --port") from None
    if chosen is not None:
        raise Failure(f"Port {chosen} is taken by another program. Without --port a free one is chosen.")
    raise Failure(f"The ports {_FIRST_PORT} to {_FIRST_PORT + _PORTS - 1} are taken. Choose another: --port")
