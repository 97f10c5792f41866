"""`glmttsctl install-service` and `uninstall-service`: the daemon, or the gateway, as a service of systemd."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from glmtts.protocol.system_words import error_in_words, exit_in_words

from .failures import Failure
from .live_config import daemon_config
from .service_files import (
    GATEWAY,
    Installation,
    ServiceFilesError,
    closed_folder,
    commands_folder,
    folder_name,
    service_name,
)
from .session import session, shared_options
from .ui.output import print_json

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

_WORDS = {
    "put": "put in place",
    "replace": "replaced, unchanged since it was put in place",
    "same": "is there already",
    "keep": "stays as it is",
    "conflict": "was edited, and is in the way",
}


def _service_options(function: F) -> F:
    for option in (
        click.option(
            "--prefix",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("/usr/local"),
            show_default=True,
            help="Units are installed in lib/systemd below it.",
        ),
        click.option(
            "--root",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("/"),
            help="Install into this folder instead of /, to build an image; systemd is not called then.",
        ),
        click.option("--yes", is_flag=True, help="Don't ask."),
        click.option("--dry-run", is_flag=True, help="Only print what would be done."),
        click.option("--gateway", is_flag=True, help="The HTTP gateway, in place of the daemon."),
        click.option(
            "--instance", metavar="NAME", help="One of several daemons: glmtts@NAME.service, configured by NAME.toml."
        ),
    ):
        function = option(function)
    return function


@click.command("install-service")
@_service_options
@shared_options
def install_service(instance: str | None, *, gateway: bool, dry_run: bool, yes: bool, root: Path, prefix: Path) -> None:
    """Install the daemon as a service of systemd.

    It runs the commands of this installation. The service is neither enabled nor started. An edited file is never
    overwritten, and the configuration not at all; `uninstall-service` removes what was installed.
    """
    installation, service = _installation(instance, root, prefix, gateway=gateway)
    commands = _known(commands_folder)
    if gateway and importlib.util.find_spec("uvicorn") is None:
        raise Failure(f"The gateway's packages are not there; '{commands}/glmtts-gateway --check' names them.")
    user = GATEWAY if gateway else "glmtts"
    if (closed := closed_folder(commands / "glmttsd")) is not None:
        raise Failure(
            f"The service runs as the user {user}, which can't enter {closed}, where {commands} is. Install "
            "glmtts-supervisor in a folder that everyone may read: python3 -m venv /opt/glmtts"
        )
    default = daemon_config("default")
    if default.returncode:
        raise Failure(f"The default configuration can't be printed:\n{default.stderr.strip()}")
    files = _known(lambda: installation.files(service, default.stdout))
    told = [{"file": str(file.path), "what": _WORDS[installation.action(file)]} for file in files]
    programs = {"sysusers.d": ["systemd-sysusers"], "tmpfiles.d": ["systemd-tmpfiles", "--create"]}
    after = [[*programs[f.path.parent.name], str(f.path)] for f in files if f.path.parent.name in programs]
    after.append(["systemctl", "daemon-reload"])
    after = after if _is_live(root) else []
    if _agreed(dry_run=dry_run, yes=yes, root=root, told=told, commands=after, question=f"Install {service}.service?"):
        _known(lambda: installation.put(service, files))
        _run(after)
        if gateway:
            session().note(
                "\nLook at [gateway] in /etc/glmtts/glmtts.toml, then:\n"
                f"  systemctl enable --now {service}.socket {service}.service\n"
                "  curl http://127.0.0.1:8080/readyz\n"
                f"Another address: systemctl edit {service}.socket"
            )
            return
        _, _, name = service.partition("@")
        session().note(
            f"\nLook at /etc/glmtts/{name or 'glmtts'}.toml, then:\n"
            f"  systemctl enable --now {service}.service\n"
            f"  glmttsctl --endpoint ipc:///run/{folder_name(service)}/glmtts.sock status\n"
            "Users other than root need to be in the group glmtts: usermod -aG glmtts NAME"
        )


@click.command("uninstall-service")
@_service_options
@shared_options
def uninstall_service(
    instance: str | None, *, gateway: bool, dry_run: bool, yes: bool, root: Path, prefix: Path
) -> None:
    """Stop the service, and remove its files.

    Running jobs are finished. Edited files stay, and so do the state (jobs, voices, outputs, keys) and the user glmtts.
    """
    installation, service = _installation(instance, root, prefix, gateway=gateway)
    if service not in installation.record.services:
        known = ", ".join(installation.record.services) or "none"
        raise Failure(f"{service} was not installed by install-service; installed: {known}.")
    going, changed = installation.removable(service)
    told = [{"file": str(path), "what": "removed"} for path in going]
    told += [{"file": str(path), "what": "stays, because it was edited"} for path in changed]
    before = [["systemctl", "disable", "--now", f"{service}.socket", f"{service}.service"]] if _is_live(root) else []
    if _agreed(dry_run=dry_run, yes=yes, root=root, told=told, commands=before, question=f"Remove {service}.service?"):
        _run(before)
        _known(lambda: installation.remove(service))
        if before:
            folder = folder_name(service)
            shutil.rmtree(Path("/run") / folder, ignore_errors=True)
            _run([["systemctl", "daemon-reload"]])
            stays = (
                f"The user {service} stays"
                if gateway
                else f"Its state stays in /var/lib/{folder}, and so does the user glmtts"
            )
            session().note(f"{stays} (userdel {GATEWAY if gateway else 'glmtts'}).")


def _installation(instance: str | None, root: Path, prefix: Path, *, gateway: bool) -> tuple[Installation, str]:
    if gateway and instance is not None:
        raise click.UsageError("--gateway has no instances.")
    if not prefix.is_absolute():
        raise click.UsageError(f"--prefix {prefix}: name an absolute path.")
    service = GATEWAY if gateway else _known(lambda: service_name(instance))
    return _known(lambda: Installation(root.absolute(), prefix)), service


def _known(call: Callable[[], T]) -> T:
    """What ``call`` returns; its errors fail the command."""
    try:
        return call()
    except ServiceFilesError as error:
        raise Failure(str(error)) from None


def _agreed(
    *, dry_run: bool, yes: bool, root: Path, told: list[dict[str, str]], commands: list[list[str]], question: str
) -> bool:
    """Print what is to be done; whether to do it."""
    if session().json:
        print_json({"files": told, "commands": commands, "done": not dry_run and yes})
    else:
        for line in told:
            click.echo(f"{line['file']}: {line['what']}")
        for command in commands:
            click.echo(f"$ {' '.join(command)}")
    if dry_run:
        return False
    if root == Path("/") and os.geteuid() != 0:
        raise Failure("Only root may change the system's services: run it with sudo.")
    return yes or click.confirm(question, err=True, abort=True)


def _is_live(root: Path) -> bool:
    """Whether this is about the systemd that runs here (sd_booted(3))."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _run(commands: list[list[str]]) -> None:
    for command in commands:
        try:
            done = subprocess.run(command, stdout=sys.stderr, check=False)
        except OSError as error:
            raise Failure(f"{command[0]}: {error_in_words(error, starting=True)}") from None
        if done.returncode:
            raise Failure(f"'{' '.join(command)}' {exit_in_words(done.returncode)}; fix that, and try again.")
