"""A finding of the doctor."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..core.settings import Settings

State = Literal["ok", "warning", "wrong"]


class Check(Struct, kw_only=True):
    """One thing that was examined. Where it is not ok, ``means`` has the consequence and ``mend`` the remedy.

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


def needs_gpu(settings: Settings) -> bool:
    """Whether no worker can start without a GPU."""
    return settings.engine.name == "glmtts" and settings.workers.gpus != "none"


def memory(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
