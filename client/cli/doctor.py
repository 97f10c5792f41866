"""`glmttsctl doctor`: is this machine fit for the daemon, and is the daemon well? What is wrong, and what mends it.

The machine is looked at by the daemon's own code in a process of its own (``python -m glmtts.daemon.doctor``); what the
running daemon says of itself is asked here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from glmtts.protocol.requests import VERSION

from .failures import FAILED, Finished
from .gpus import nvml_in_words
from .live_config import InForce, ask
from .session import Session, session, shared_options
from .status import alert_in_words
from .ui.output import clean, duration, plain, print_json
from .ui.wrap import hung, terminal_width

Check = dict[str, str]

#: Longer than the daemon's code takes when everything in it hangs.
_MACHINE_TIMEOUT_S = 40.0
_DAEMON_TIMEOUT_S = 3.0
#: Workers that die so often have a reason.
_MANY_RESTARTS = 3

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "wrong": ("WRONG", "red")}
_INDENT = " " * 9
#: What is kept in a file or sent to somebody has lines of a length that can be read.
_WIDTH_OF_A_FILE = 100


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration to look at.  [that of the running daemon, else the one that a daemon would find]",
)
@shared_options
def doctor(file: Path | None) -> None:
    """Look at this machine and at the daemon: what is wrong, what that means, what mends it.

    Driver, NVML, containers, permissions, sockets, versions, disk, memory, limits, engine. Ends with 0 when nothing is
    wrong, with 1 otherwise; warnings alone are 0.
    """
    run = session()
    told = None if file else _in_force(run)
    # By its absolute path: what the doctor says is read elsewhere too.
    checks = [*_machine(run, str(file.absolute()) if file else None, told), *_daemon(run)]
    count = {state: sum(check["state"] == state for check in checks) for state in _MARKS}
    if run.json:
        print_json({"ok": count["wrong"] == 0, "checks": checks})
    else:
        for check in checks:
            _print(check)
        click.echo(f"\n{count['ok']} ok, {count['warning']} to be looked at, {count['wrong']} wrong.")
    if count["wrong"]:
        raise Finished(FAILED)


def _print(check: Check) -> None:
    width = terminal_width() or _WIDTH_OF_A_FILE
    mark, style = _MARKS[check["state"]]
    first, *others = hung(f"{mark:<9}", f"{check['name']}: {clean(check['seen'])}", width)
    click.echo(click.style(first[:9], fg=style) + first[9:])
    for line in others:
        click.echo(line)
    if check["state"] == "ok":
        return
    for key in ("means", "mend"):
        if check[key]:
            click.echo("\n".join(hung(f"{_INDENT}{key + ':':<7}", clean(check[key]), width)))


def _check(name: str, seen: str, state: str = "ok", means: str = "", mend: str = "") -> Check:
    return {"name": name, "state": state, "seen": seen, "means": means, "mend": mend}


# --- the machine


def _in_force(run: Session) -> InForce | None:
    """What the running daemon has read, None where that can't be asked."""
    from glmtts.client import GlmttsError

    try:
        return ask(run, _DAEMON_TIMEOUT_S)
    except GlmttsError:
        return None


def _machine(run: Session, file: str | None, told: InForce | None) -> list[Check]:
    """``told`` is the running daemon's word on its configuration, where ``file`` names none."""
    named = told.file if told else file
    command = [sys.executable, "-m", "glmtts.daemon.doctor", *([] if named is None else ["--config", named])]
    environment = os.environ | (told.environment if told else {})
    # Where none is named, the daemon's own configuration says where its sockets are.
    endpoint = run.endpoint or environment.get("GLMTTS_ENDPOINT") or ""
    if endpoint.startswith("ipc:///"):
        environment["GLMTTS_RUNTIME_DIR"] = str(Path(endpoint.removeprefix("ipc://")).parent)
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=_MACHINE_TIMEOUT_S, check=False)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        seen = f"no answer within {_MACHINE_TIMEOUT_S:.0f} s"
        return [_check("machine", seen, "wrong", "not even its parts could be started", "see the load of the machine")]
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        return [
            _check(
                "machine",
                f"could not be looked at: {last[-1] if last else f'status {done.returncode}'}",
                "warning",
                "the daemon's code is not installed in this Python, or damaged; a client alone works without it",
                f"run the doctor where the daemon is installed, or reinstall it ({sys.executable} -m pip)",
            )
        ]
    checks = [
        _check(**{key: str(check.get(key, "")) for key in ("name", "seen", "state", "means", "mend")})
        for check in found
    ]
    for check in checks if told else []:
        if check["name"] == "configuration":
            check["seen"] += " (that of the running daemon)"
    return checks


# --- the daemon


def _daemon(run: Session) -> list[Check]:
    from glmtts.client import DaemonNotRunning, Forbidden, GlmttsError

    try:
        with run.client(_DAEMON_TIMEOUT_S) as client:
            pong = client.ping()
    except DaemonNotRunning as error:
        mend = "start it: glmttsd, or systemctl start glmtts"
        return [_check("daemon", f"does not run ({error.reason})", "warning", "nobody can speak", mend)]
    except Forbidden as error:
        return [
            _check("daemon", str(error), "warning", "this user can't speak; it says nothing of others", "as it says")
        ]
    except GlmttsError as error:
        means = "it listens, but gives no sensible answer"
        mend = "see its log; glmttsctl stop, which says what ends a daemon that hangs, and start it again"
        return [_check("daemon", str(error), "wrong", means, mend)]
    checks = [_check("daemon", f"{pong.version}, up for {duration(pong.uptime_s)}"), *_versions(pong)]
    try:
        with run.control(_DAEMON_TIMEOUT_S) as control:
            checks += _state(plain(control.status()))
            checks += _workers(plain(control.workers()).get("workers") or [])
            checks += _nvml(plain(control.gpus()).get("nvml"))
    except GlmttsError as error:
        checks.append(_check("operations", str(error), "warning", "workers and GPUs could not be asked for"))
    return checks


def _versions(pong: Any) -> list[Check]:
    here = importlib.metadata.version("glmtts-supervisor")
    if pong.protocol != VERSION:
        return [
            _check(
                "protocol",
                f"the daemon speaks version {pong.protocol}, this program {VERSION}",
                "wrong",
                "they don't understand each other",
                "install the same version of glmtts-supervisor on both sides",
            )
        ]
    if pong.version != here:
        return [
            _check(
                "version",
                f"the daemon runs {pong.version}, this program is {here}",
                "warning",
                "after an update the old daemon goes on until it is restarted",
                "glmttsctl stop, and start it again",
            )
        ]
    return [_check("protocol", f"version {VERSION} on both sides")]


def _state(status: dict[str, Any]) -> list[Check]:
    checks = [_check("state", str(status.get("state", "?")))]
    if status.get("state") != "running":
        checks[0] |= {"state": "warning", "means": "jobs are not started", "mend": "glmttsctl resume"}
    if "attention" in status:
        return [*checks, *(_attention(problem) for problem in status["attention"])]
    for alert in status.get("alerts") or []:
        checks.append(_check("alert", alert_in_words(alert), "wrong", "the daemon itself complains", "see its log"))
    if status.get("internal_errors"):
        checks.append(
            _check(
                "internal errors",
                str(status["internal_errors"]),
                "warning",
                "the daemon met errors of its own and went on",
                "please report the traceback that is in its log",
            )
        )
    return checks


_MEANS = {
    "down": ("wrong", "nobody is spoken to"),
    "bad": ("wrong", "something is broken for some; speech goes on"),
    "slow": ("warning", "people wait for longer than they should"),
    "note": ("warning", "nobody is harmed by it now"),
}


def _attention(problem: dict[str, str]) -> Check:
    """What the daemon itself says of how it does."""
    state, means = _MEANS.get(problem["severity"], ("warning", "the daemon itself complains"))
    return _check(f"daemon: {problem['name']}", problem["what"], state, means, problem["do"])


def _workers(workers: list[dict[str, Any]]) -> list[Check]:
    checks = []
    able = [worker for worker in workers if worker.get("state") in ("ready", "busy")]
    checks.append(_check("workers", f"{len(able)} of {len(workers)} can speak"))
    if workers and not able:
        checks[0] |= {"state": "warning", "means": "nobody is heard now", "mend": "glmttsctl workers says why"}
    for worker in workers:
        name, death = clean(str(worker.get("name", "?"))), worker.get("last_death") or {}
        if worker.get("process_state") == "D":
            checks.append(
                _check(
                    f"worker {name}",
                    f"pid {worker.get('pid')} is in uninterruptible sleep",
                    "wrong",
                    "the kernel, usually the GPU's driver, holds it; no signal ends it and its memory stays taken",
                    "see dmesg; often only a reboot of the machine helps",
                )
            )
        elif int(worker.get("restarts") or 0) >= _MANY_RESTARTS:
            checks.append(
                _check(
                    f"worker {name}",
                    f"{worker['restarts']} restarts, the last for {death.get('cause', '?')} {death.get('detail', '')}",
                    "warning",
                    "a worker that dies again and again fails some job each time",
                    "see the log for its last words",
                )
            )
    return checks


def _nvml(nvml: Any) -> list[Check]:
    if not isinstance(nvml, dict) or nvml.get("state") in ("ok", "absent"):
        return []
    means = "the daemon goes on with what it last knew of the GPUs"
    return [_check("NVML, to the daemon", nvml_in_words(nvml), "wrong", means, "see the checks of GPUs above")]
