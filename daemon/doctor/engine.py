"""What the doctor sees of the workers' interpreter: whether it has what a worker needs, and whether eSpeak NG loads."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .. import config
from ..core.settings import Settings
from ..processes.command import OLDEST_PYTHON, PACKAGES
from .check import Check

#: Importing from a slow disk takes its time.
_TIMEOUT_S = 14.0

#: Prints the version of each module that it is given, or the error with which its import ended.
_IMPORTS = """
import importlib, json, platform, sys
found, failed = {}, {}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        found[name] = str(getattr(module, "__version__", "") or getattr(module, "version", ""))
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"python": platform.python_version(), "found": found, "failed": failed}))
"""

_ESPEAK = """
import ctypes, json, espeakng_loader
library = ctypes.CDLL(espeakng_loader.get_library_path())
library.espeak_Info.restype = ctypes.c_char_p
rate = library.espeak_Initialize(2, 0, str(espeakng_loader.get_data_path()).encode(), 0x8000)
print(json.dumps({"version": library.espeak_Info(None).decode(), "rate": rate}))
"""


def interpreter(settings: Settings) -> list[Check]:
    """Whether the workers' Python exists and imports what every worker needs."""
    path = config.engine_python(settings)
    key = "[engine] python"
    answer = ask(path, _IMPORTS, *PACKAGES)
    if isinstance(answer, str):
        return [
            Check(
                name="engine's python",
                state="wrong",
                seen=f"{path}: {answer}",
                means="no worker can start",
                mend=f"set {key} to an interpreter that exists and that this user may run",
            )
        ]
    version = str(answer["python"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PYTHON:
        return [
            Check(
                name="engine's python",
                state="wrong",
                seen=f"{path}: Python {version}",
                means="too old for a worker",
                mend=f"set {key} to a Python 3.11 or later",
            )
        ]
    failed: dict[str, str] = answer["failed"]
    if failed:
        names = " ".join(PACKAGES[name] for name in failed)
        return [
            Check(
                name="engine's python",
                state="wrong",
                seen=f"{path}: " + "; ".join(f"import {name}: {why[:200]}" for name, why in failed.items()),
                means="no worker can start",
                mend=f"{path} -m pip install {names}",
            )
        ]
    versions = ", ".join(f"{name} {version}".rstrip() for name, version in answer["found"].items())
    return [Check(name="engine's python", seen=f"{path}: Python {version}, {versions}")]


def espeak(settings: Settings) -> list[Check]:
    """Whether eSpeak NG loads; only where it is the engine does it matter."""
    path = config.engine_python(settings)
    answer = ask(path, _ESPEAK)
    chosen = settings.engine.name == "espeak"
    if not isinstance(answer, str) and int(answer["rate"]) > 0:
        return [Check(name="eSpeak NG", seen=f"{answer['version']}, {answer['rate']} Hz")]
    why = answer if isinstance(answer, str) else "its library or its data can't be loaded"
    return [
        Check(
            name="eSpeak NG",
            state="wrong" if chosen else "ok",
            seen=why if chosen else f"not used here ({why})",
            means="the engine 'espeak' can't speak" if chosen else "",
            mend=f"{path} -m pip install espeakng-loader" if chosen else "",
        )
    ]


def ask(path: str, script: str, *arguments: str, timeout_s: float | None = None) -> dict[str, Any] | str:
    """The JSON object that a script prints last in this interpreter, or why there is none.

    Where one was printed and the script did not come to its end, ``late`` is added, which says so.
    """
    timeout_s = timeout_s or _TIMEOUT_S
    try:
        done = subprocess.run(
            [path, "-c", script, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        late = f"did not answer within {timeout_s:.0f} s"
        answer = _last_object(error.stdout or b"")
        return late if answer is None else answer | {"late": late}
    except OSError as error:
        return str(error.strerror)
    if (answer := _last_object(done.stdout)) is not None:
        return answer
    last = done.stderr.decode(errors="replace").strip().splitlines()
    return last[-1][:300] if last else f"ended with status {done.returncode}"


def _last_object(output: bytes) -> dict[str, Any] | None:
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
