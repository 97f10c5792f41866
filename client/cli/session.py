"""Shared by all commands: the options --endpoint, --json and --quiet, and the connections and output by them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .failures import PLAIN_CODES, describe
from .ui.output import print_json
from .ui.wrap import fold, terminal_width

if TYPE_CHECKING:
    from glmtts.client import Client, Control

F = TypeVar("F", bound=Callable[..., Any])

#: The longest time that the daemon takes in a request: 30 days.
MOST_SECONDS = 30 * 86_400

#: For questions that the daemon answers at once.
QUICK_TIMEOUT_S = 10.0


@dataclass
class Session:
    """The options given before or after the command's name."""

    endpoint: str | None = None
    json: bool = False
    quiet: bool = False

    def client(self, timeout: float | None = QUICK_TIMEOUT_S) -> Client:
        """A connection to the requests socket; ``timeout`` in seconds is for each answer, None waits for ever."""
        from glmtts.client import Client

        return Client(endpoint=self.endpoint, timeout=timeout)

    def control(self, timeout: float | None = QUICK_TIMEOUT_S) -> Control:
        """A connection to the control socket of the same daemon."""
        from glmtts.client import Control

        return Control(endpoint=self.endpoint, timeout=timeout)

    def ask(self, op: str, *, timeout: float | None = QUICK_TIMEOUT_S, **keys: Any) -> dict[str, Any]:
        """The answer to one operation of the control socket."""
        with self.control(timeout) as control:
            return control.call(op, **keys)

    def show(self, answer: Any, in_words: Callable[[Any], str | None]) -> None:
        """Print an answer: as JSON, or as the text that ``in_words`` makes of it, unless that prints by itself."""
        if self.json:
            print_json(answer)
        elif (text := in_words(answer)) is not None:
            click.echo(fold(text, terminal_width()))

    def note(self, text: str) -> None:
        """Print a remark on stderr, beside the data."""
        if not self.quiet:
            click.echo(fold(text, terminal_width(sys.stderr)), err=True)


def session() -> Session:
    """The session of the running command."""
    return click.get_current_context().find_root().ensure_object(Session)


def shared_options(function: F) -> F:
    """``--endpoint``, ``--json`` and ``--quiet``, which may stand before or after the command's name."""
    for option in (_QUIET, _JSON, _ENDPOINT):
        function = option(function)
    return function


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    # The option after the command's name wins over the one before it.
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


class Seconds(click.FloatRange):
    """A time in seconds; nan, which is in every range, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


def timeout_option(help: str = "Give up after this many seconds.") -> Callable[[F], F]:
    """``--timeout SECONDS``."""
    return click.option("--timeout", type=Seconds(min=0, min_open=True), metavar="SECONDS", default=None, help=help)


def report(error: Exception, *, as_json: bool) -> None:
    """Print the failure: on stdout as JSON for a program, on stderr in words for a person.

    Raises ``error`` itself where it is unexpected: that is a bug, and its traceback is needed.
    """
    if as_json:
        try:
            click.echo(json.dumps({"error": describe(error)}, ensure_ascii=False))
            return
        except OSError:  # stdout itself is what fails: a full disk, a terminal that is gone
            pass
    if isinstance(error, click.UsageError):
        error.show()
        return
    if isinstance(error, click.Abort):
        click.echo("Interrupted.", err=True)
        return
    described = describe(error)
    code = described["code"]
    named = f" ({code})" if code not in PLAIN_CODES else ""
    click.echo(fold(f"glmttsctl: {described['message']}{named}", terminal_width(sys.stderr)), err=True)
    if "retry_after_s" in described:
        click.echo(f"Try again in {described['retry_after_s']:.1f} s.", err=True)
