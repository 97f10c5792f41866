"""glmttsctl, the command line. Commands are imported when they are called, so that quick ones stay quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from glmtts.protocol import inherited

from .failures import exit_code
from .session import report, shared_options

#: The modules of the commands, in the order of the help.
_MODULES = {
    "say": "say", "batch": "batch.command", "ping": "about", "info": "about", "voices": "voices", "voice": "voices",
    "jobs": "jobs", "job": "jobs", "wait": "jobs", "cancel": "cancel", "queue": "queue", "limits": "limits",
    "status": "status", "health": "health", "logs": "logs", "workers": "workers", "gpus": "gpus", "top": "top.command",
    "events": "events", "metrics": "operate", "recycle": "operate", "scale": "operate", "quarantine": "quarantine",
    "pause": "operate", "resume": "operate", "drain": "operate", "reload": "operate", "stop": "operate",
    "log-level": "operate", "config": "config", "key": "key", "apikey": "apikey", "doctor": "doctor",
    "install-service": "service", "uninstall-service": "service", "demo": "demo.command", "serve": "serve",
    "completion": "about",
}  # fmt: skip


class _Commands(click.Group):
    """Imports the module of a command when the command is called, and exits with the documented codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f".{_MODULES[cmd_name]}", __name__)
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    # click declares overloads; these are their common parameters.
    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(arguments, prog_name, standalone_mode=False, **extra)
        inherited.put_right()
        try:
            result = super().main(arguments, prog_name, standalone_mode=False, **extra)
        except Exception as error:
            report(error, as_json="--json" in arguments)
            sys.exit(exit_code(error))
        sys.exit(result if isinstance(result, int) else 0)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="glmtts-supervisor", prog_name="glmttsctl")
@shared_options
def main() -> None:
    """Speak, and operate the speech daemon.

    \b
    glmttsctl say "今天天气不错" -o weather.wav
    glmttsctl batch lines.jsonl --out speech/
    glmttsctl status

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon is not running or not ready, 4 the job ended in an
    error, 124 timed out.
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
