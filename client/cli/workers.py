"""`glmttsctl workers`, and the worker's row and remarks that `top` shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .session import session, shared_options
from .ui.humanize import age, growth, memory, vram
from .ui.output import clean, duration, humanise, plain, print_json
from .ui.table import Column, echo, lay_out
from .ui.wrap import hung, terminal_width

Worker = Mapping[str, Any]

STATE_STYLES = {
    "ready": "green",
    "busy": "cyan",
    "starting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "waiting": "yellow",
    "failed": "red",
    "stopped": "bright_black",
}

#: Ends that somebody has wanted, and that are no fault: what the daemon calls so (core/causes.py), by name.
WANTED = frozenset({"requested", "operator", "recycled", "leak", "unloaded"})

#: What a worker's reason is the reason for.
_REASON_FOR = dict.fromkeys(("waiting", "backoff"), "waits: ") | dict.fromkeys(
    ("ready", "busy", "draining"), "is being replaced: "
)


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Everything that is known of each.")
@shared_options
def workers(verbose: bool) -> None:
    """Every worker: what it does, its memory and where that goes, how the last one died.

    The source of a VRAM figure stands behind it: NVML knows it for this process; "~ (device)" is the device's use
    less what others have, where NVML doesn't tell processes apart; "(torch)" is what torch alone has reserved.
    """
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.workers())
    if run.json:
        print_json(answer)
        return
    found = answer.get("workers") or []
    if not found:
        click.echo("No workers: none is configured, or all are unloaded.")
        return
    # What goes into a pipe is cut by nobody.
    width = terminal_width()
    for line in lay_out(columns_of(found), width):
        echo(line)
    for worker in found:
        for remark in details(worker) if verbose else remarks(worker):
            click.echo("\n".join(hung(f"{clean(str(worker.get('name', '?')))}: ", remark, width)))
    if bounds := bounds_in_words(answer.get("bounds")):
        click.echo(bounds)


def columns_of(found: Sequence[Worker], *, brief: bool = False) -> list[Column]:
    """The table of workers; ``brief`` leaves out what `top` has no room for."""
    states = [state_of(worker) for worker in found]
    styles = [_state_style(worker) for worker in found]
    trends = [growth(worker.get("trend_mib_per_job")) for worker in found]
    vram_texts = [vram(worker.get("vram"), worker.get("vram_trust")) for worker in found]
    table = [
        Column("name", [str(worker.get("name", "?")) for worker in found]),
        Column("state", states, styles=styles),
        Column("gpu", [humanise("", worker.get("gpu")) for worker in found], rank=4, right=True),
        Column("jobs", [humanise("", worker.get("jobs_done")) for worker in found], rank=3, right=True),
        Column("age", [age(worker.get("age_s")) for worker in found], rank=6, right=True),
        Column("rss", [memory(worker.get("rss")) for worker in found], rank=5, right=True),
        Column("vram", vram_texts, rank=1),
        Column("trend", trends, rank=2, styles=["yellow" if t.startswith("+") else "" for t in trends]),
    ]
    restarts = [restarts_of(worker) for worker in found]
    if brief:
        return [
            *table[:4],
            Column("restarts", [humanise("", w.get("restarts")) for w in found], rank=7, right=True),
            *table[4:],
        ]
    if any(worker.get("restarts") or worker.get("last_death") for worker in found):
        table.append(Column("restarts", restarts, rank=0))
    return table


def state_of(worker: Worker) -> str:
    """Its state, with what keeps it there."""
    words = str(worker.get("state", "?"))
    if isinstance(worker.get("backoff_s"), (int, float)):
        words += f" {age(worker['backoff_s'])}"
    return f"{words} (D)" if worker.get("process_state") == "D" else words


def _state_style(worker: Worker) -> str:
    if worker.get("process_state") == "D":
        return "red"
    return STATE_STYLES.get(str(worker.get("state")), "")


def restarts_of(worker: Worker) -> str:
    """``0``, ``3, crashed 12s ago``."""
    words = humanise("", worker.get("restarts"))
    death = worker.get("last_death")
    if isinstance(death, Mapping):
        ago = death.get("ago_s")
        words += f", {death.get('cause', '?')}" + (f" {age(ago)} ago" if isinstance(ago, (int, float)) else "")
    return words


def remarks(worker: Worker) -> list[str]:
    """What a person should know of a worker beyond its row."""
    said = []
    if worker.get("process_state") == "D":
        said.append(
            "in uninterruptible sleep (D): the kernel, usually a driver, holds its process, and no signal ends it; "
            "its place is taken until then (`glmttsctl doctor`)"
        )
    if worker.get("reason"):
        said.append(_REASON_FOR.get(str(worker.get("state")), "") + clean(str(worker["reason"])))
    if worker.get("replaces"):
        said.append(f"takes the place of {clean(str(worker['replaces']))}")
    death = worker.get("last_death")
    if isinstance(death, Mapping) and death.get("detail"):
        said.append(f"{'last replaced' if death.get('cause') in WANTED else 'last death'}: {death_in_words(death)}")
    return said


def details(worker: Worker) -> list[str]:
    """All of it, for ``--verbose``."""
    said = remarks(worker)
    facts = [
        ("pid", humanise("", worker.get("pid"))),
        ("process", str(worker.get("process_state") or "-")),
        ("speaks", humanise("", worker.get("jobs") or [])),
        ("jobs of this process", humanise("", worker.get("jobs_since_start"))),
        ("loaded in", humanise("load_s", worker.get("load_s"))),
        ("torch holds", memory(worker.get("torch_allocated"))),
        ("torch reserved", memory(worker.get("torch_reserved"))),
    ]
    known = ", ".join(f"{name} {words}" for name, words in facts if words != "-")
    if worker.get("trend"):
        said.append(f"trend: {clean(str(worker['trend']))}")
    return [*said, known] if known else said


def death_in_words(death: Mapping[str, Any]) -> str:
    """``crashed (killed by SIGSEGV), 12.0 s ago``."""
    words = str(death.get("cause", "?"))
    if death.get("detail"):
        words += f" ({clean(str(death['detail']))})"
    if isinstance(death.get("ago_s"), (int, float)):
        words += f", {duration(death['ago_s'])} ago"
    return words


def bounds_in_words(bounds: Any) -> str:
    """How many workers there may be, where the number follows the load."""
    if not isinstance(bounds, Mapping) or bounds.get("min") == bounds.get("max"):
        return ""
    words = f"Between {humanise('', bounds.get('min'))} and {humanise('', bounds.get('max'))} workers"
    wanted = bounds.get("wanted")
    return f"{words}; wanted now: {wanted}." if wanted is not None else f"{words}."
