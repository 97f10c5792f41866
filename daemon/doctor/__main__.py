"""``python -m glmtts.daemon.doctor [--config FILE]``: is this machine fit to run the daemon? For ``glmttsctl doctor``.

Prints a JSON list of checks. Each group of them runs in a process of its own and has a time to answer in: a driver or a
network disk that hangs, even where no signal ends it, costs that group alone, and is itself what was found.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..config import load as config
from ..core.settings import Settings
from . import engine as doctor_engine
from . import files as doctor_places
from . import gpu as doctor_gpu
from . import host as doctor_host
from .check import Check


class Group(NamedTuple):
    """Checks that are made in one process: how long they may take in seconds, and what it means if they take longer."""

    checks: tuple[Callable[[Settings], list[Check]], ...]
    timeout_s: float
    silence: str


#: Groups that are looked at side by side. A driver may take seconds for each GPU, an import of torch much longer.
GROUPS: dict[str, Group] = {
    "host": Group(
        (
            doctor_host.python,
            doctor_host.limits,
            doctor_host.memory_limits,
            doctor_host.clock,
            doctor_host.container,
        ),
        10.0,
        "the machine itself is in trouble: see the load and the kernel's log",
    ),
    "places": Group(
        (doctor_places.runtime, doctor_places.folders),
        10.0,
        "a disk does not answer, often one on the network: see mount and df",
    ),
    "devices": Group(
        (doctor_gpu.devices, doctor_gpu.xids), 10.0, "the driver or the kernel's log does not answer: see the load"
    ),
    "NVML": Group(
        (doctor_gpu.nvml, doctor_engine.room),
        15.0,
        "a call into the GPU's driver hangs: see dmesg for Xid lines; often only a reboot ends it",
    ),
    "engine": Group((doctor_engine.interpreter,), 30.0, "the workers' Python does not end"),
    "engine's files": Group((doctor_engine.files,), 10.0, "the disk with the engine's files does not answer"),
    "engine's packages": Group(
        (doctor_engine.packages,), 34.0, "importing them does not end: a slow disk, or a very busy machine"
    ),
}


def examine(group: str, path: Path | None) -> list[Check]:
    """Every check of a group. One that fails by itself is a finding too."""
    settings, _ = doctor_places.configuration(path)
    found: list[Check] = []
    for check in GROUPS[group].checks:
        try:
            found += check(settings)
        except PermissionError as error:
            found.append(
                Check(
                    name=check.__name__,
                    state="warning",
                    seen=f"this user may not look at it: {error.filename or error.strerror}",
                    means="only the daemon's user and root can",
                    mend="run it as one of them: sudo glmttsctl doctor",
                )
            )
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            found.append(
                Check(
                    name=check.__name__,
                    state="warning",
                    seen=f"could not be looked at: {words}",
                    means="the doctor met what it does not expect",
                    mend="please report it",
                )
            )
    return found


def examine_all(path: Path | None) -> list[Check]:
    """Every group side by side, each in a process of its own."""
    found = doctor_places.configuration(path, look_up=True)[1]
    command = [sys.executable, "-m", "glmtts.daemon.doctor", "--config", str(path or "")]
    running = {
        group: subprocess.Popen(
            [*command, "--group", group], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for group in GROUPS
    }
    began = time.monotonic()
    for group, process in running.items():
        found += _answer_of(group, process, began, GROUPS[group].timeout_s)
    return found


def _answer_of(group: str, process: subprocess.Popen[bytes], began: float, timeout_s: float) -> list[Check]:
    try:
        out, err = process.communicate(timeout=max(0.1, began + timeout_s - time.monotonic()))
        return msgspec.json.decode(out, type=list[Check])
    except subprocess.TimeoutExpired:
        # Not waited for: one in uninterruptible sleep does not die of it.
        process.kill()
        seen, means = f"no answer within {timeout_s:g} s", GROUPS[group].silence
    except msgspec.DecodeError:
        last = err.decode(errors="replace").strip().splitlines()
        seen = f"ended with status {process.returncode}" + (f": {last[-1][:300]}" if last else "")
        means = "a library that this loads brought its process down"
    return [Check(name=group, state="wrong", seen=seen, means=means)]


def main(arguments: list[str] | None = None) -> int:
    """Print the checks as JSON; 0 unless something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m glmtts.daemon.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="FILE", help="'': the built-in defaults; found, where none is given")
    parser.add_argument("--group", choices=list(GROUPS))
    options = parser.parse_args(arguments)
    path = config.named(options.config)
    found = examine(options.group, path) if options.group else examine_all(path)
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.flush()
    # A library's threads, or a process that can't be killed, must not keep this one.
    os._exit(1 if any(check.state == "wrong" for check in found) else 0)


if __name__ == "__main__":
    sys.exit(main())
