"""The command line of the daemon, and what has to be right before it starts."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from pathlib import Path

from glmtts.protocol.inherited import raise_descriptor_limit

from . import __version__, config
from .core.inputs import JournalChanged
from .core.state import Installation
from .log.logger import Logger
from .processes.command import missing_packages
from .processes.own_process import UnfitError, be_first_process, check_limits, keep_files_private
from .storage import outputs
from .storage.filesystems import network_filesystem

#: Exit statuses: sysexits(3).
EX_CONFIG, EX_UNAVAILABLE, EX_SOFTWARE = 78, 69, 70


class StartRefusedError(Exception):
    """The daemon can't start; the message has the reason and the remedy."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def prepare(arguments: list[str] | None) -> config.Config:
    """Read the command line and the configuration, and check packages and limits. Raises StartRefusedError."""
    parser = argparse.ArgumentParser(prog="glmttsd", description="Serve speech on a ZeroMQ socket.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"the configuration (default: $GLMTTS_CONFIG, {config.SYSTEM_FILE} if it exists, else built-in defaults)",
    )
    parser.add_argument("--version", action="version", version=f"glmttsd {__version__}")
    options = parser.parse_args(arguments)
    if os.getpid() == 1:
        be_first_process()
    try:
        loaded = config.read(config.find(options.config))
    except config.ConfigError as error:
        raise StartRefusedError("\n".join(error.problems), EX_CONFIG) from None
    if missing := missing_packages(loaded.settings):
        # With this status a service manager does not start it again: only an installation helps.
        raise StartRefusedError(
            "glmttsd can't start: packages of the daemon are missing, as in an installation for clients. "
            f"Install them: {sys.executable} -m pip install {' '.join(missing)}",
            EX_CONFIG,
        )
    raise_descriptor_limit()
    keep_files_private()
    try:
        check_limits(sockets=2 if loaded.tcp else 1)
    except UnfitError as error:
        raise StartRefusedError(f"glmttsd can't start: {error}", EX_UNAVAILABLE) from None
    return loaded


def warn(state_folder: Path, paused_since: float | None, log: Logger) -> None:
    """Log what an operator should know at the start: a state folder on the network, and a pause that was kept."""
    if kind := network_filesystem(state_folder):
        log.warning(
            "state folder is on the network, where the journal may fail; take a local disk",
            key="[daemon] state_dir",
            filesystem=kind,
            folder=str(state_folder),
        )
    if paused_since is not None:
        log.warning(
            "queue is paused, as an operator left it: accepted jobs wait until 'glmttsctl resume'",
            since=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(paused_since)),
        )


def prepare_outputs(folder: Path, journal: JournalChanged, instance: str, log: Logger) -> None:
    """Make the folder of the output files, and remove what an earlier daemon of this instance left there."""
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        # A journal that can't be read yet may have jobs that know their outputs by these marks.
        if not journal.problem:
            outputs.sweep(folder, keep={row.job for row in journal.rows}, instance=instance)
    except OSError as error:
        log.warning("outputs can't be written", folder=str(folder), reason=error.strerror)


def installation(loaded: config.Config, instance: str, *, managed: bool) -> Installation:
    """This daemon and its folders, for the core; ``managed``: a service manager restarts it."""
    settings = loaded.settings
    return Installation(
        boot=instance + secrets.token_hex(4),
        version=__version__,
        config_file=str(loaded.file or ""),
        state_folder=str(config.state_dir(settings)),
        outputs_folder=str(config.outputs_dir(settings)),
        results_folder=str(config.results_dir(settings)),
        managed=managed,
    )
