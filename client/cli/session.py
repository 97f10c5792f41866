"""What every command shares: the daemon's endpoint, --json, --quiet, and the connections made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from glmtts.client import Client, Control

F = TypeVar("F", bound=Callable[..., Any])

#: How long a question is waited for that the daemon answers at once.
QUICK_TIMEOUT_S = 10.0


@dataclass
class Session:
    """The options given before or after the command's name."""

    endpoint: str | None = None
    json: bool = False
    quiet: bool = False

    def client(self, timeout: float | None = QUICK_TIMEOUT_S) -> Client:
        """A connection to the requests socket; ``timeout`` in seconds holds for every answer, None waits for ever."""
        from glmtts.client import Client

        return Client(endpoint=self.endpoint, timeout=timeout)

    def control(self, timeout: float | None = QUICK_TIMEOUT_S) -> Control:
        """A connection to the control socket of the same daemon."""
        from glmtts.client import Control

        return Control(endpoint=self.endpoint, timeout=timeout)

    def note(self, text: str) -> None:
        """Say something to the person at the terminal, beside the data."""
        if not self.quiet:
            click.echo(text, err=True)


def session() -> Session:
    """The session of the command that runs."""
    return click.get_current_context().find_root().ensure_object(Session)


def shared_options(function: F) -> F:
    """``--endpoint``, ``--json`` and ``--quiet``, which are understood before and after the command's name."""
    for option in (_QUIET, _JSON, _ENDPOINT):
        function = option(function)
    return function


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # Given twice, the one after the command's name wins; not given there, the earlier one stays.
    if value not in (None, False):
        assert param.name is not None
        setattr(ctx.find_root().ensure_object(Session), param.name, value)


_ENDPOINT = click.option(
    "--endpoint",
    metavar="ENDPOINT",
    expose_value=False,
    callback=_remember,
    help="The daemon's requests socket, such as ipc:///run/glmtts/glmtts.sock.  [GLMTTS_ENDPOINT]",
)
_JSON = click.option(
    "--json", is_flag=True, expose_value=False, callback=_remember, help="Print data, and errors, as JSON."
)
_QUIET = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_remember, help="No remarks on stderr."
)


def timeout_option(help: str = "Give up after this many seconds.") -> Callable[[F], F]:
    """``--timeout SECONDS``."""
    return click.option(
        "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", default=None, help=help
    )
