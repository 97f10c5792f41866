"""``python -m glmtts.gateway.doctor [--config FILE]``: whether the HTTP gateway can run here.

Prints a JSON list of checks, for ``glmttsctl doctor``; an empty one where there is no gateway.
"""

from __future__ import annotations

import argparse
import grp
import http.client
import importlib.util
import json
import os
import pwd
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKeyProblem
from glmtts.protocol.endpoints import requests_endpoint

from . import settings
from .listening import Listen, parse_listen
from .main import packages
from .settings import Settings, SettingsError

Check = dict[str, str]

UNIT = "glmtts-gateway"
_MODULES = ("uvicorn", "starlette", "python_multipart", "prometheus_client")
_TIMEOUT_S = 5.0


def mistakes(path: Path | None) -> list[Check]:
    """The mistakes in ``[gateway]``."""
    try:
        settings.read(path)
    except SettingsError as error:
        return [_check("configuration", line.removeprefix(f"{path}: "), "warning") for line in str(error).splitlines()]
    return []


def _check(name: str, seen: str, state: str = "ok", means: str = "", mend: str = "") -> Check:
    return {"name": f"gateway's {name}", "state": state, "seen": seen, "means": means, "mend": mend}


def examine(path: Path | None) -> list[Check]:
    """All checks; none where neither the configuration nor the service manager knows a gateway."""
    units = _units()
    is_service = units[f"{UNIT}.service"].get("LoadState") == "loaded"
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig")) if path else {}
    except (OSError, ValueError):
        document = {}  # a finding of the daemon's checks
    gone = [module for module in _MODULES if importlib.util.find_spec(module) is None]
    # The packaged configuration has the section, whether there is a gateway or not.
    if not is_service and (gone or "gateway" not in document):
        return []
    checks = _service(units) if is_service else []
    if gone:
        remedy = f"{sys.executable} -m pip install {' '.join(packages())}"
        checks.append(_check("packages", f"missing: {', '.join(gone)}", "wrong", "it does not start", remedy))
    try:
        chosen = settings.read(path)
    except SettingsError as error:
        means = "no gateway can start with it; a running one keeps what it has read"
        return [*checks, _check("configuration", str(error), "wrong", means, f"correct {path}")]
    checks.append(_check("configuration", f"{path or 'built-in defaults'}: good"))
    listens = _places(units) if is_service else [parse_listen(chosen.listen)]
    for listen in listens:
        if not settings.may_listen(chosen, listen):
            words = settings.why_it_may_not(f"{listen.host}:{listen.port}")
            checks.append(_check("address", words, "wrong", "the gateway does not start"))
    user = _user() if is_service else None
    checks += _keys(chosen, user)
    if user is not None:
        checks += _daemon(chosen, document, user)
    # A connection would start a service that systemd starts with its first visitor.
    if not is_service or units[f"{UNIT}.service"].get("ActiveState") == "active":
        checks += [_answers(listen, "wrong" if is_service else "warning") for listen in listens]
    return checks


# --- the service


def _units() -> dict[str, dict[str, str]]:
    """What systemd knows of the gateway's units."""
    units: dict[str, dict[str, str]] = {f"{UNIT}.service": {}, f"{UNIT}.socket": {}}
    command = ["systemctl", "show", "--property=Id,LoadState,ActiveState,Result,ExecMainStatus,Listen", *units]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return units
    for block in done.stdout.split("\n\n"):
        about = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        # A socket with several addresses has a line for each.
        about["Listen"] = "\n".join(line[7:] for line in block.splitlines() if line.startswith("Listen="))
        if about.get("Id") in units:
            units[about["Id"]] = about
    return units


def _service(units: dict[str, dict[str, str]]) -> list[Check]:
    service, listener = units[f"{UNIT}.service"], units[f"{UNIT}.socket"]
    state, listening = service.get("ActiveState", "?"), listener.get("ActiveState", "?")
    means, start = "speech over HTTP is not served", f"systemctl enable --now {UNIT}.socket {UNIT}.service"
    if "failed" in (state, listening):
        failed = service if state == "failed" else listener
        seen = f"{failed.get('Id')} has failed ({failed.get('Result')}, exit status {service.get('ExecMainStatus')})"
        remedy = (
            f"journalctl -u {UNIT} -n 20 has the reason; then systemctl reset-failed '{UNIT}.*' and "
            f"systemctl start {UNIT}.socket {UNIT}.service"
        )
        return [_check("service", seen, "wrong", means, remedy)]
    if state == "active":
        return [_check("service", "active")]
    if listening == "active":
        return [_check("service", "starts with its first visitor")]
    return [_check("service", f"installed, but {state}", "warning", means, start)]


def _places(units: dict[str, dict[str, str]]) -> list[Listen]:
    """Where systemd listens."""
    found = []
    for line in units[f"{UNIT}.socket"].get("Listen", "").splitlines():
        try:
            found.append(parse_listen(line.removesuffix(" (Stream)")))
        except ValueError:
            continue
    return found


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(UNIT)
    except KeyError:
        return None


def _may(user: pwd.struct_passwd, test: str, path: str) -> bool:
    """Whether the service's user may read (``-r``) or write (``-w``) a path; only root can find out."""
    if os.geteuid() != 0:
        return True
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    command = ["/usr/bin/test", test, path]
    return (
        subprocess.run(command, user=user.pw_uid, group=user.pw_gid, extra_groups=groups, check=False).returncode == 0
    )


# --- keys, and the daemon


def _keys(chosen: Settings, user: pwd.struct_passwd | None) -> list[Check]:
    file = chosen.api_keys
    if not file:
        return []
    means, name = "the gateway does not start, and a running one keeps its old keys", "file of keys"
    try:
        keys = api_keys.parse(Path(file).read_text(encoding="utf-8"))
    except PermissionError:
        return [_check(name, f"{file}: this user may not read it", "warning", "not checked", "run the doctor as root")]
    except (OSError, UnicodeDecodeError, ApiKeyProblem) as error:
        words, _, remedy = settings.keys_problem(file, error).partition("; ")
        return [_check(name, words, "wrong", means, remedy or f"correct {file}")]
    if user is not None and not _may(user, "-r", file):
        group = grp.getgrgid(user.pw_gid).gr_name
        remedy = f"chown root:{group} {file}; chmod 640 {file}"
        return [_check(name, f"{file}: the user {user.pw_name} may not read it", "wrong", means, remedy)]
    if not keys and not chosen.anonymous:
        means = "every request is refused with 401"
        return [_check(name, f"{file} has no key", "wrong", means, f"glmttsctl apikey new NAME --file {file}")]
    return [_check(name, f"{file}: {len(keys)} key{'' if len(keys) == 1 else 's'}")]


def _daemon(chosen: Settings, document: dict[str, Any], user: pwd.struct_passwd) -> list[Check]:
    """Whether the daemon on this machine takes the gateway's requests."""
    endpoint = chosen.endpoint or requests_endpoint()
    if not endpoint.startswith("ipc://"):
        return []
    limits = document.get("limits")
    gateways = limits.get("gateways", [UNIT]) if isinstance(limits, dict) else [UNIT]
    checks = []
    if isinstance(gateways, list) and not {user.pw_name, str(user.pw_uid)} & set(map(str, gateways)):
        checks.append(
            _check(
                "user",
                f"{user.pw_name} is not in [limits] gateways",
                "wrong",
                "the daemon refuses every request of the gateway, which may not speak for its customers",
                f'add "{user.pw_name}" to [limits] gateways, then: glmttsctl reload',
            )
        )
    path = endpoint.removeprefix("ipc://")
    # Path.exists raises an error for a folder that this user may not enter.
    if os.path.exists(path) and not _may(user, "-w", path):  # noqa: PTH110
        group = grp.getgrgid(Path(path).stat().st_gid).gr_name
        checks.append(
            _check(
                "daemon",
                f"{user.pw_name} may not open {path}",
                "wrong",
                "every request gets 503",
                f"usermod -aG {group} {user.pw_name}; systemctl restart {UNIT}.service; or set [daemon] socket_group",
            )
        )
    return checks or [_check("user", f"{user.pw_name} may send requests to the daemon")]


# --- the address


def _answers(listen: Listen, state: str) -> Check:
    """Whether a gateway answers where it should, or another program has its place."""
    connection = http.client.HTTPConnection(listen.host or "localhost", listen.port, timeout=_TIMEOUT_S)
    try:
        if listen.path:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_TIMEOUT_S)
            connection.sock.connect(listen.path)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        ours, words = answer.headers.get("x-request-id", "").startswith("req_"), answer.read(1_000).decode().strip()
    except (ConnectionRefusedError, FileNotFoundError):
        return _check("address", f"{listen}: no gateway runs")
    except PermissionError:
        return _check("address", f"{listen}: this user may not open it", "warning", "not checked", "run it as root")
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        ours, words = False, ""
    finally:
        connection.close()
    if not ours:
        remedy = (
            "'ss -ltnp' names it: stop it, or choose another address: [gateway] listen, or ListenStream= of the unit"
        )
        return _check("address", f"{listen}: another program has it", state, "no gateway can start there", remedy)
    if answer.status != 200:
        return _check("address", f"{listen}: {words}", state, "requests get 503", "see the checks of the daemon")
    return _check("address", f"{listen}: a gateway serves")


def main() -> int:
    """Print the checks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--settings", action="store_true", help="only the mistakes in [gateway]")
    options = parser.parse_args()
    path = settings.find(options.config)
    print(json.dumps(mistakes(path) if options.settings else examine(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
