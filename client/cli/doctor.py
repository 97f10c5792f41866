"""`glmttsctl doctor`: the problems of this machine, of this installation and of the daemon, and how to fix them.

The machine is checked by the daemon's own code in another process (``python -m glmtts.daemon.doctor``); the running
daemon is asked here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from glmtts.protocol.events import Pong
from glmtts.protocol.requests import VERSION
from glmtts.protocol.system_words import exit_in_words

from .failures import FAILED, Finished
from .gpus import nvml_in_words
from .live_config import LiveConfig, gateway_checks, live_config
from .session import Session, session, shared_options
from .ui.humanize import duration
from .ui.wrap import clean, hanging, terminal_width

Check = dict[str, str]

#: More than the daemon's checks take when all of them hang.
_MACHINE_TIMEOUT_S = 40.0
_DAEMON_TIMEOUT_S = 3.0
#: A worker with this many restarts has a problem.
_MANY_RESTARTS = 3

_STYLES = {"ok": "green", "warning": "yellow", "wrong": "red"}
#: A report in a file has lines that can be read.
_WIDTH_OF_A_FILE = 100


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration to check.  [that of the running daemon, else the one that a daemon would find]",
)
@shared_options
def doctor(file: Path | None) -> None:
    """Check this machine and the daemon.

    Says what is wrong, what that means and how to fix it. Checks the driver, NVML, containers, permissions, sockets,
    versions, disk, memory, limits and the engine. Exits with 1 if something is wrong; warnings alone are 0.
    """
    run = session()
    live = None if file else _live_config(run)
    named = str(file.absolute()) if file else None
    checks = [*_machine(run, named, live), *gateway_checks(live.file if live else named), *_daemon(run)]
    count = {state: sum(check["state"] == state for check in checks) for state in _STYLES}
    run.show({"ok": count["wrong"] == 0, "checks": checks}, lambda _: _print(checks, count))
    if count["wrong"]:
        raise Finished(FAILED)


def _print(checks: Sequence[Check], count: Mapping[str, int]) -> None:
    width = terminal_width() or _WIDTH_OF_A_FILE
    for check in checks:
        state = check["state"]
        mark = "WRONG" if state == "wrong" else state
        text = "\n".join(hanging(f"{mark:<9}", f"{check['name']}: {clean(check['seen'])}", width))
        click.echo(click.style(text[:9], fg=_STYLES[state]) + text[9:])
        for label, words in (("means:", check["means"]), ("fix:", check["mend"])):
            if words and state != "ok":
                click.echo("\n".join(hanging(f"{'':9}{label:<7}", clean(words), width)))
    click.echo(
        f"\n{count['ok']} ok, {count['warning']} warning{'' if count['warning'] == 1 else 's'}, {count['wrong']} wrong."
    )


def _check(name: str, seen: str, state: str = "ok", means: str = "", mend: str = "") -> Check:
    return {"name": name, "state": state, "seen": seen, "means": means, "mend": mend}


# --- the machine


def _live_config(run: Session) -> LiveConfig | None:
    from glmtts.client import GlmttsError

    try:
        return live_config(run, _DAEMON_TIMEOUT_S)
    except GlmttsError:
        return None


def _machine(run: Session, file: str | None, live: LiveConfig | None) -> list[Check]:
    """The checks of the daemon's code, by ``file`` or by the configuration of the running daemon."""
    named = live.file if live else file
    command = [sys.executable, "-m", "glmtts.daemon.doctor", *([] if named is None else ["--config", named])]
    environment = os.environ | (live.environment if live else {})
    endpoint = run.endpoint or environment.get("GLMTTS_ENDPOINT") or ""
    if endpoint.startswith("ipc:///"):
        environment["GLMTTS_RUNTIME_DIR"] = str(Path(endpoint.removeprefix("ipc://")).parent)
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=_MACHINE_TIMEOUT_S, check=False)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        seen = f"no answer within {_MACHINE_TIMEOUT_S:.0f} s"
        return [_check("machine", seen, "wrong", "not even its checks could start", "look at the load of the machine")]
    except OSError as error:
        means = "no more processes can be made, or this Python can't be run: no worker could start either"
        return [_check("machine", f"can't be checked: {error.strerror}", "wrong", means, "see ulimit -u and pids.max")]
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        return [
            _check(
                "machine",
                f"can't be checked: {last[-1] if last else exit_in_words(done.returncode)}",
                "warning",
                "the daemon's code is damaged or not installed in this Python; a client works without it",
                f"run the doctor where the daemon is installed, or reinstall it ({sys.executable} -m pip)",
            )
        ]
    checks = [
        _check(**{key: str(one.get(key, "")) for key in ("name", "seen", "state", "means", "mend")}) for one in found
    ]
    for check in checks:
        if live and check["name"] == "configuration":
            check["seen"] += " (that of the running daemon)"
    return checks


# --- the daemon


def _daemon(run: Session) -> list[Check]:
    from glmtts.client import DaemonNotRunning, Forbidden, GlmttsError

    try:
        with run.client(_DAEMON_TIMEOUT_S) as client:
            pong = client.ping()
    except DaemonNotRunning as error:
        start = "start it: glmttsd, or systemctl start glmtts"
        return [_check("daemon", f"does not run ({error.reason})", "warning", "no requests are served", start)]
    except Forbidden as error:
        return [_check("daemon", str(error), "warning", "this user's requests are refused", "see above")]
    except GlmttsError as error:
        restart = "see its log; glmttsctl stop, which says how to end a daemon that hangs, and start it again"
        return [_check("daemon", str(error), "wrong", "it listens, but does not answer properly", restart)]
    checks = [_check("daemon", f"{pong.version}, up for {duration(pong.uptime_s)}"), _version(pong)]
    try:
        status = run.ask("status", timeout=_DAEMON_TIMEOUT_S)
        workers = run.ask("workers", timeout=_DAEMON_TIMEOUT_S).get("workers") or []
        nvml = run.ask("gpus", timeout=_DAEMON_TIMEOUT_S).get("nvml") or {}
    except GlmttsError as error:
        return [*checks, _check("operations", str(error), "warning", "the state of workers and GPUs is unknown")]
    checks.append(_check("state", str(status.get("state", "?"))))
    if status.get("state") != "running":
        checks[-1] |= {"state": "warning", "means": "no job starts", "mend": "glmttsctl resume"}
    checks += [_problem(problem) for problem in status.get("attention") or []]
    checks += _workers(workers)
    if nvml.get("state") not in ("ok", "absent", None):
        means = "the daemon works with the last known figures of the GPUs"
        checks.append(_check("NVML, to the daemon", nvml_in_words(nvml), "wrong", means, "see the GPU checks above"))
    return checks


def _version(pong: Pong) -> Check:
    here = importlib.metadata.version("glmtts-supervisor")
    if pong.protocol != VERSION:
        return _check(
            "protocol",
            f"the daemon speaks version {pong.protocol}, this program {VERSION}",
            "wrong",
            "they can't talk to each other",
            "install the same version of glmtts-supervisor on both sides",
        )
    if pong.version != here:
        return _check(
            "version",
            f"the daemon runs {pong.version}, this program is {here}",
            "warning",
            "after an update the old daemon runs until it is restarted",
            "glmttsctl stop, and start it again",
        )
    return _check("protocol", f"version {VERSION} on both sides")


_MEANS = {
    "down": ("wrong", "no requests are served"),
    "bad": ("wrong", "some requests fail; others are served"),
    "slow": ("warning", "requests wait for longer than they should"),
    "note": ("warning", "no request is affected now"),
}


def _problem(problem: Mapping[str, str]) -> Check:
    """A problem that the daemon reports itself."""
    state, means = _MEANS[problem["severity"]]
    return _check(f"daemon: {problem['name']}", problem["what"], state, means, problem["do"])


def _workers(workers: Sequence[Mapping[str, Any]]) -> list[Check]:
    able = sum(worker.get("state") in ("ready", "busy") for worker in workers)
    checks = [_check("workers", f"{able} of {len(workers)} can speak")]
    if workers and not able:
        checks[0] |= {"state": "warning", "means": "no job can run now", "mend": "glmttsctl workers says why"}
    for worker in workers:
        name, death = f"worker {clean(str(worker.get('name', '?')))}", worker.get("last_death") or {}
        if worker.get("process_state") == "D":
            means = "the kernel, usually the GPU's driver, holds it: no signal ends it and its memory stays taken"
            seen = f"pid {worker.get('pid')} is in uninterruptible sleep"
            checks.append(_check(name, seen, "wrong", means, "see dmesg; often only a reboot of the machine helps"))
        elif int(worker.get("restarts") or 0) >= _MANY_RESTARTS:
            seen = f"{worker['restarts']} restarts, the last after {death.get('cause', '?')} {death.get('detail', '')}"
            means = "each crash of a worker fails its job or delays it"
            checks.append(_check(name, seen.strip(), "warning", means, "see its last lines: glmttsctl logs --worker"))
    return checks
