"""``python -m glmtts.daemon.doctor [--config FILE]``: checks whether this machine can run the daemon.

Prints a JSON list of checks, for ``glmttsctl doctor``. Each group of checks runs in a process of its own with a time
limit: a driver or a network disk that hangs, even where no signal ends it, costs that group alone, and is a finding.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from glmtts.protocol import inherited
from glmtts.protocol.system_words import error_in_words, exit_in_words

from .. import config
from ..core.settings import Settings
from ..processes.guardian_client import not_started
from . import engine, files, gpu, host, kernel
from .check import Check, warning, wrong


class Group(NamedTuple):
    """Checks that run in one process: their time limit in seconds, and what it means when they exceed it."""

    checks: tuple[Callable[[Settings], list[Check]], ...]
    timeout_s: float
    silence: str


#: Groups run side by side. A driver may take seconds for each GPU, an import of torch much longer.
GROUPS: dict[str, Group] = {
    "host": Group(
        (
            *(host.python, host.limits, host.memory_limits, host.clock, host.confined_engine, host.container),
            kernel.system_calls,
        ),
        10.0,
        "the machine itself is in trouble: see the load and the kernel's log",
    ),
    "places": Group(
        (files.runtime, files.folders, kernel.runtime_files),
        10.0,
        "a disk does not answer, often one on the network: see mount and df",
    ),
    "devices": Group((gpu.devices, gpu.xids), 10.0, "the driver or the kernel's log does not answer: see the load"),
    "NVML": Group(
        (gpu.nvml, engine.room),
        15.0,
        "a call into the GPU's driver hangs: see dmesg for Xid lines; often only a reboot ends it",
    ),
    "engine": Group((engine.interpreter,), 30.0, "the workers' Python does not end"),
    "engine's files": Group((engine.files,), 10.0, "the disk with the engine's files does not answer"),
    "engine's packages": Group(
        (engine.packages,), 34.0, "importing them does not end: a slow disk, or a very busy machine"
    ),
}


#: What a start of the daemon with this configuration needs, in a second or two: for ``glmttsctl config check``.
START: dict[str, Group] = {
    "engine": GROUPS["engine"],
    "engine's files": GROUPS["engine's files"],
    "engine's installation": Group((engine.installed,), 30.0, "the workers' Python does not end"),
    "state folder": Group((files.state,), 10.0, GROUPS["places"].silence),
}


def _group(name: str) -> Group:
    return GROUPS[name] if name in GROUPS else START[name]


def examine(group: str, path: Path | None) -> list[Check]:
    """Run every check of a group. One that fails by itself is a finding too."""
    settings, _ = files.configuration(path)
    found: list[Check] = []
    for check in _group(group).checks:
        try:
            found += check(settings)
        except config.ConfigError:
            continue  # a finding already: the configuration is wrong
        except PermissionError as error:
            seen = f"this user may not read {error.filename or error.strerror}"
            means = "only the daemon's user and root can check it"
            found.append(warning(check.__name__, seen, means, "run it as one of them: sudo glmttsctl doctor"))
        except OSError as error:
            means, remedy = "this could not be checked", "see the error, and run the doctor again"
            found.append(warning(check.__name__, error_in_words(error), means, remedy))
        except Exception as error:
            seen = f"the check failed: {type(error).__name__}: {error_in_words(error)}"
            found.append(warning(check.__name__, seen, "the doctor has a bug", "please report it"))
    return found


def examine_all(path: Path | None, groups: Mapping[str, Group]) -> list[Check]:
    """Run groups side by side, each in a process of its own."""
    found = files.configuration(path, look_up=True)[1]
    command = [sys.executable, "-m", "glmtts.daemon.doctor", "--config", str(path or "")]
    running: dict[str, subprocess.Popen[bytes]] = {}
    for group in groups:
        try:
            running[group] = subprocess.Popen(
                [*command, "--group", group], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            found.append(wrong(group, not_started(sys.executable, error), "these checks, and workers, can't start"))
    began = time.monotonic()
    for group, process in running.items():
        found += answer_of(group, process, began + groups[group].timeout_s)
    return found


def answer_of(group: str, process: subprocess.Popen[bytes], deadline: float) -> list[Check]:
    """The findings of a group's process; its silence at the deadline (monotonic), or its crash, is one too."""
    try:
        out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        return msgspec.json.decode(out, type=list[Check])
    except subprocess.TimeoutExpired:
        # Not waited for: SIGKILL does not end a process in uninterruptible sleep.
        process.kill()
        return [wrong(group, f"no answer within {_group(group).timeout_s:g} s", _group(group).silence)]
    except msgspec.DecodeError:
        last = err.decode(errors="replace").strip().splitlines()
        seen = exit_in_words(process.returncode) + (f": {last[-1][:300]}" if last else "")
        return [wrong(group, seen, "a library that it loads crashed its process")]


def main(arguments: list[str] | None = None) -> int:
    """Print the checks as JSON; the exit status is 1 if anything is wrong, else 0."""
    inherited.put_right()
    parser = argparse.ArgumentParser(prog="python -m glmtts.daemon.doctor")
    parser.add_argument("--config", metavar="FILE", help="'': the built-in defaults; found, where none is given")
    parser.add_argument("--group", choices=[*GROUPS, *START])
    parser.add_argument("--start", action="store_true", help="only what a start of the daemon needs")
    options = parser.parse_args(arguments)
    path = config.find(options.config)
    found = examine(options.group, path) if options.group else examine_all(path, START if options.start else GROUPS)
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.flush()
    # A library's threads, or a process that can't be killed, must not keep this one.
    os._exit(1 if any(check.state == "wrong" for check in found) else 0)


if __name__ == "__main__":
    sys.exit(main())
