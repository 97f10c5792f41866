"""Checks of an engine's installation, without loading the engine; the doctor runs them in a process of its own.

An engine's package has its own in ``checks.py``, which imports nothing heavy: packages of the engine are imported by
the interpreter that the workers run in, in yet another process (:func:`ask`).
"""

from __future__ import annotations

import json
import subprocess
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from glmtts.protocol.system_words import error_in_words, exit_in_words

State = Literal["ok", "warning", "wrong"]


class Check(Struct, kw_only=True):
    """One finding of the doctor. Unless it is ok, ``means`` has the consequence and ``mend`` the remedy.

    The names of the fields are those of ``glmttsctl doctor --json``.
    """

    name: str
    state: State = "ok"
    seen: str
    means: str = ""
    mend: str = ""


def ok(name: str, seen: str) -> Check:
    return Check(name=name, seen=seen)


def finding(state: State, name: str, seen: str, means: str, remedy: str = "") -> Check:
    """A finding that a person has to act on; an ``ok`` one carries neither consequence nor remedy."""
    return ok(name, seen) if state == "ok" else Check(name=name, state=state, seen=seen, means=means, mend=remedy)


def warning(name: str, seen: str, means: str, remedy: str) -> Check:
    return finding("warning", name, seen, means, remedy)


def wrong(name: str, seen: str, means: str, remedy: str = "") -> Check:
    return finding("wrong", name, seen, means, remedy)


class Workplace(NamedTuple):
    """What the workers run with: their interpreter, the section ``[engine.NAME]``, and whether they use a GPU."""

    python: str
    settings: dict[str, Any]
    uses_gpu: bool


class GpuNeed(NamedTuple):
    """GPU memory of one worker in bytes, how that was computed, and an option that reduces it (or ``""``)."""

    bytes: int
    computed: str
    remedy: str


class EngineChecks:
    """The checks of one engine. This base is for an engine that needs nothing."""

    def files(self, place: Workplace) -> list[Check]:  # noqa: ARG002
        """Checks that take milliseconds: files, models."""
        return []

    def installed(self, place: Workplace) -> list[Check]:  # noqa: ARG002
        """Checks that take a second or two: what is installed in the workers' interpreter."""
        return []

    def packages(self, place: Workplace) -> list[Check]:  # noqa: ARG002
        """Checks that may take half a minute: imports in the workers' interpreter."""
        return []

    def gpu_need(self, place: Workplace) -> GpuNeed | None:  # noqa: ARG002
        """None for an engine that needs no GPU, and where :meth:`files` finds a problem."""
        return None


def memory(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def ask(python: str, script: str, *arguments: str, timeout_s: float) -> dict[str, Any] | str:
    """Run a script in an interpreter. Returns the JSON object that it prints last, or why there is none.

    If the script printed one and then ran out of time, the object has a key ``late`` with a message.
    """
    try:
        done = subprocess.run(
            [python, "-c", script, *arguments],
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
        return error_in_words(error, starting=True)
    if (answer := _last_object(done.stdout)) is not None:
        return answer
    last = done.stderr.decode(errors="replace").strip().splitlines()
    return last[-1][:300] if last else exit_in_words(done.returncode)


def _last_object(output: bytes) -> dict[str, Any] | None:
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
