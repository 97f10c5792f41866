"""`glmttsctl install-service` and `uninstall-service`: the daemon as a service of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .failures import FAILED, Failure
from .session import session, shared_options
from .ui.output import print_json

_INSTANCE = click.option(
    "--instance", metavar="NAME", help="One of several daemons on this machine: glmtts@NAME.service, with NAME.toml."
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
_YES = click.option("--yes", is_flag=True, help="Do it without asking.")
_ROOT = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    help="Another folder in the place of /, for an image that is being made; no command of systemd is run then.",
)
_PREFIX = click.option(
    "--prefix",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/usr/local"),
    show_default=True,
    help="Where systemd finds the units, in lib/ of it.",
)

_WORDS = {
    "put": "put in place",
    "replace": "replaced, as it is unchanged since it was put there",
    "same": "is there already",
    "keep": "stays as it is",
    "conflict": "has been changed by somebody, and is in the way",
}


@click.command("install-service")
@_INSTANCE
@_DRY_RUN
@_YES
@_ROOT
@_PREFIX
@shared_options
def install_service(instance: str | None, dry_run: bool, yes: bool, root: Path, prefix: Path) -> None:
    """Put the daemon in place as a service of systemd, run by this installation's own commands.

    It is neither enabled nor started. A file that somebody has changed is never overwritten, the configuration never
    at all; `uninstall-service` takes away what was put there.
    """
    from glmtts.client.cli import service_files

    installation, service = _installation(instance, root, prefix)
    commands = _known(service_files.commands_folder)
    closed = service_files.closed_folder(commands / "glmttsd")
    if closed is not None:
        raise Failure(
            f"The service runs as the user glmtts, who can't enter {closed}, where {commands} is. Install "
            "glmtts-supervisor where everybody may read it: python3 -m venv /opt/glmtts",
            status=FAILED,
        )
    files = _known(lambda: installation.files(service, _default_configuration()))
    actions = [(file, installation.action(file)) for file in files]
    told = [{"file": str(file.path), "what": _WORDS[action]} for file, action in actions]
    after = _after_install(installation, service, root)
    if _agreed(dry_run=dry_run, yes=yes, root=root, told=told, after=after, question=f"Install {service}.service?"):
        _known(lambda: installation.put(service, files))
        _run(after)
        session().note(_next_steps(service))


@click.command("uninstall-service")
@_INSTANCE
@_DRY_RUN
@_YES
@_ROOT
@_PREFIX
@shared_options
def uninstall_service(instance: str | None, dry_run: bool, yes: bool, root: Path, prefix: Path) -> None:
    """Stop the service, and take away what `install-service` has put in place; jobs that run are finished first.

    What somebody has changed stays, and so do the state (jobs, voices, outputs, keys) and the user glmtts.
    """
    installation, service = _installation(instance, root, prefix)
    if service not in installation.record.services:
        known = ", ".join(installation.record.services) or "none"
        raise Failure(f"{service} was not put in place by install-service; what was: {known}.", status=FAILED)
    going, changed = installation.removable(service)
    told = [{"file": str(path), "what": "removed"} for path in going]
    told += [{"file": str(path), "what": "stays, as somebody has changed it"} for path in changed]
    before = [["systemctl", "disable", "--now", f"{service}.socket", f"{service}.service"]] if _is_live(root) else []
    if _agreed(dry_run=dry_run, yes=yes, root=root, told=told, after=before, question=f"Remove {service}.service?"):
        _run(before)
        _known(lambda: installation.remove(service))
        if before:
            from glmtts.client.cli.service_files import folder_name

            folder = folder_name(service)
            shutil.rmtree(Path("/run") / folder, ignore_errors=True)
            _run([["systemctl", "daemon-reload"]])
            session().note(f"What it has kept stays in /var/lib/{folder}, and the user glmtts (userdel glmtts).")


def _installation(instance: str | None, root: Path, prefix: Path) -> tuple[Any, str]:
    from glmtts.client.cli import service_files

    if not prefix.is_absolute():
        raise click.UsageError(f"--prefix {prefix}: name an absolute path.")
    service = _known(lambda: service_files.service_name(instance))
    return _known(lambda: service_files.Installation(root.absolute(), prefix)), service


def _known(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, with its errors as a command's."""
    from glmtts.client.cli.service_files import ServiceFilesError

    try:
        return call()
    except ServiceFilesError as error:
        raise Failure(str(error), status=FAILED) from None


def _agreed(
    *, dry_run: bool, yes: bool, root: Path, told: list[dict[str, str]], after: list[list[str]], question: str
) -> bool:
    """Say what is to be done; whether to do it."""
    run = session()
    if run.json:
        print_json({"files": told, "commands": after, "done": not dry_run and yes})
    else:
        for line in told:
            click.echo(f"{line['file']}: {line['what']}")
        for command in after:
            click.echo(f"$ {' '.join(command)}")
    if dry_run:
        return False
    if root == Path("/") and os.geteuid() != 0:
        raise Failure("Only root may change the system's services: run it with sudo.", status=FAILED)
    return yes or click.confirm(question, err=True, abort=True)


def _is_live(root: Path) -> bool:
    """Whether the systemd that runs here is the one that is meant (sd_booted(3))."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _after_install(installation: Any, service: str, root: Path) -> list[list[str]]:
    if not _is_live(root):
        return []
    files = installation.files(service, "")
    sysusers, tmpfiles = (next(f for f in files if f.path.parent.name == n) for n in ("sysusers.d", "tmpfiles.d"))
    return [
        ["systemd-sysusers", str(sysusers.path)],
        ["systemd-tmpfiles", "--create", str(tmpfiles.path)],
        ["systemctl", "daemon-reload"],
    ]


def _run(commands: list[list[str]]) -> None:
    for command in commands:
        try:
            done = subprocess.run(command, stdout=sys.stderr, check=False)
        except OSError as error:
            raise Failure(f"{command[0]}: {error.strerror}", status=FAILED) from None
        if done.returncode:
            words = " ".join(command)
            raise Failure(f"'{words}' failed with status {done.returncode}; mend that, and try again.", status=FAILED)


def _default_configuration() -> str:
    # The daemon's code is never imported here: a client has to work where the daemon is not installed.
    command = [sys.executable, "-m", "glmtts.daemon.config", "default"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _next_steps(service: str) -> str:
    _, _, instance = service.partition("@")
    folder = f"/run/{service.replace('@', '-')}"
    return (
        f"\nLook at /etc/glmtts/{instance or 'glmtts'}.toml, then:\n"
        f"  systemctl enable --now {service}.service\n"
        f"  glmttsctl --endpoint ipc://{folder}/glmtts.sock status\n"
        "Who is to be served besides root joins the group: usermod -aG glmtts NAME"
    )
