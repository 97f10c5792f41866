"""glmttsctl: the command line. Its commands are loaded when they are called, so that a quick one stays quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from .failures import exit_code, report
from .session import shared_options

#: Where each command stands: its module in this package, and what it is called there.
_COMMANDS: dict[str, tuple[str, str]] = {
    "say": ("say", "say"),
    "batch": ("batch.command", "batch"),
    "ping": ("about", "ping"),
    "info": ("about", "info"),
    "voices": ("voices", "voices"),
    "voice": ("voices", "voice"),
    "jobs": ("jobs", "jobs"),
    "job": ("jobs", "job"),
    "wait": ("jobs", "wait"),
    "cancel": ("cancel", "cancel"),
    "queue": ("queue", "queue"),
    "limits": ("limits", "limits"),
    "status": ("status", "status"),
    "health": ("health", "health"),
    "logs": ("logs", "logs"),
    "workers": ("workers", "workers"),
    "gpus": ("gpus", "gpus"),
    "top": ("top.command", "top"),
    "events": ("events", "events"),
    "metrics": ("operate", "metrics"),
    "recycle": ("operate", "recycle"),
    "scale": ("operate", "scale"),
    "quarantine": ("quarantine", "quarantine"),
    "pause": ("operate", "pause"),
    "resume": ("operate", "resume"),
    "drain": ("operate", "drain"),
    "reload": ("operate", "reload"),
    "stop": ("operate", "stop"),
    "log-level": ("operate", "log_level"),
    "config": ("config", "config"),
    "key": ("key", "key"),
    "doctor": ("doctor", "doctor"),
    "install-service": ("service", "install_service"),
    "uninstall-service": ("service", "uninstall_service"),
    "demo": ("demo.command", "demo"),
    "completion": ("about", "completion"),
}


class _Commands(click.Group):
    """A group that imports a command's module when the command is asked for, and ends with our exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f".{module}", __name__), attribute)
        assert isinstance(command, click.Command)
        return command

    # click declares it as overloads, of which this is what they share.
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
    """Speak, and look after the speech daemon.

    \b
    glmttsctl say "今天天气不错" -o weather.wav
    glmttsctl batch lines.jsonl --out speech/
    glmttsctl status

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon is not running or not ready, 4 the job ended in an
    error, 124 timed out.
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
