"""`glmttsctl workers`: each worker's state, memory and last exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .session import session, shared_options
from .ui.humanize import age, duration, growth, humanise, memory, vram
from .ui.wrap import clean, hanging, shorten, terminal_width

Worker = Mapping[str, Any]

STATE_STYLES = dict.fromkeys(("starting", "draining", "stopping", "backoff", "waiting"), "yellow") | {
    "ready": "green",
    "busy": "cyan",
    "failed": "red",
    "stopped": "bright_black",
}

#: Exits that are no fault: the daemon's policies (core/exit_causes.py), by name.
WANTED = frozenset({"requested", "operator", "recycled", "leak", "unloaded"})

#: The longest label of a job, in cells.
_LABEL = 24
#: What the ``reason`` of a worker is the reason for, by its state.
_REASON_FOR = dict.fromkeys(("waiting", "backoff"), "waits: ") | dict.fromkeys(
    ("ready", "busy", "draining"), "is being replaced: "
)


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Everything that is known of each.")
@shared_options
def workers(verbose: bool) -> None:
    """Every worker: its state and its memory.

    Also how the memory grows, and how the last process ended. Each VRAM figure names its source: "NVML" is the
    driver's figure for the process; "~ (device)" is the use of the device less that of others, where NVML does not tell
    processes apart; "torch" is what torch has reserved.
    """
    run = session()
    run.show(run.ask("workers"), lambda answer: _print(answer, verbose))


def _print(answer: Mapping[str, Any], verbose: bool) -> None:
    from .ui.table import print_lines

    found = answer.get("workers") or []
    if not found:
        click.echo("No workers: none is configured, or all are unloaded.")
        return
    width = terminal_width()
    print_lines(table_of(found, width))
    for worker in found:
        for remark in details(worker) if verbose else remarks(worker):
            click.echo("\n".join(hanging(f"{clean(str(worker.get('name')))}: ", remark, width)))
    bounds = answer.get("bounds")
    if bounds and bounds.get("min") != bounds.get("max"):
        wanted = f"; wanted now: {bounds['wanted']}" if bounds.get("wanted") is not None else ""
        click.echo(f"Between {bounds.get('min')} and {bounds.get('max')} workers{wanted}.")


def table_of(found: Sequence[Worker], width: int | None, memory_lines: Sequence[str] | None = None) -> list[Any]:
    """The table, as lines of rich. ``memory_lines`` are the sparklines of `top`, which has no room for exits."""
    from .ui.table import Column, lay_out

    labels = [", ".join(map(str, (worker.get("labels") or {}).values())) for worker in found]
    trends = [growth(worker.get("trend_mib_per_job")) for worker in found]
    restarts = [humanise("", worker.get("restarts")) for worker in found]
    columns = [
        Column("name", [str(worker.get("name", "?")) for worker in found]),
        Column("state", [_state(worker) for worker in found], styles=[_style(worker) for worker in found]),
        Column("gpu", [humanise("", worker.get("gpu")) for worker in found], rank=4, right=True),
        Column("jobs", [humanise("", worker.get("jobs_done")) for worker in found], rank=3, right=True),
        Column("age", [age(worker.get("age_s")) for worker in found], rank=6, right=True),
        Column("rss", [memory(worker.get("rss")) for worker in found], rank=5, right=True),
        Column("vram", [vram(worker.get("vram"), worker.get("vram_trust")) for worker in found], rank=1),
        Column("trend", trends, rank=2, styles=["yellow" if t.startswith("+") else "" for t in trends]),
        Column("speaks", [shorten(label, _LABEL if width is not None else None) for label in labels], rank=8),
    ]
    if memory_lines is None:
        ends = [f"{count}{_last_exit(worker)}" for count, worker in zip(restarts, found, strict=True)]
        shown = any(worker.get("restarts") or worker.get("last_death") for worker in found)
        return lay_out([*columns, Column("restarts", ends)] if shown else columns, width)
    columns.insert(4, Column("restarts", restarts, rank=7, right=True))
    # The sparkline takes the space that is left, and shows the newest part of a long one.
    least = lay_out([column for column in columns if column.rank < 6], None)
    wide = max(map(len, memory_lines), default=0)
    room = wide if width is None else min(wide, max(8, width - max(line.cell_len for line in least) - 2))
    sparks = [line[-room:] for line in memory_lines]
    return lay_out([*columns, Column("memory", sparks, rank=6, styles=["cyan"] * len(found))], width)


def _state(worker: Worker) -> str:
    words = str(worker.get("state", "?"))
    if worker.get("backoff_s") is not None:
        words += f" {age(worker['backoff_s'])}"
    return f"{words} (D)" if worker.get("process_state") == "D" else words


def _style(worker: Worker) -> str:
    return "red" if worker.get("process_state") == "D" else STATE_STYLES.get(str(worker.get("state")), "")


def _last_exit(worker: Worker) -> str:
    """``, crashed 12s ago``."""
    death = worker.get("last_death")
    if not death:
        return ""
    return f", {death.get('cause', '?')}" + (f" {age(death['ago_s'])} ago" if death.get("ago_s") is not None else "")


def remarks(worker: Worker) -> list[str]:
    """What an operator should know beyond the worker's row."""
    said = []
    if worker.get("process_state") == "D":
        said.append(
            "in uninterruptible sleep (D): the kernel, usually a driver, holds the process and no signal ends it; "
            "its slot stays taken until then (`glmttsctl doctor`)"
        )
    if worker.get("experimental"):
        said.append(f"experimental: {clean(str(worker['experimental']))}")
    if worker.get("reason"):
        said.append(_REASON_FOR.get(str(worker.get("state")), "") + clean(str(worker["reason"])))
    if worker.get("replaces"):
        said.append(f"replaces {clean(str(worker['replaces']))}")
    death = worker.get("last_death")
    if death and death.get("detail"):
        said.append(f"{'last replaced' if death.get('cause') in WANTED else 'last death'}: {death_in_words(death)}")
    return said


def details(worker: Worker) -> list[str]:
    """Everything that is known, for ``--verbose``."""
    said = remarks(worker)
    if worker.get("trend"):
        said.append(f"trend: {clean(str(worker['trend']))}")
    facts = {
        "pid": humanise("", worker.get("pid")),
        "process state": str(worker.get("process_state") or "-"),
        "slots": humanise("", worker.get("slots")),
        "jobs now": humanise("", worker.get("jobs") or []),
        "jobs of this process": humanise("", worker.get("jobs_since_start")),
        "loaded in": humanise("load_s", worker.get("load_s")),
        "torch allocated": memory(worker.get("torch_allocated")),
        "torch reserved": memory(worker.get("torch_reserved")),
    }
    known = ", ".join(f"{name} {words}" for name, words in facts.items() if words != "-")
    return [*said, known] if known else said


def death_in_words(death: Mapping[str, Any]) -> str:
    """``crashed (killed by SIGSEGV), 12.0 s ago``."""
    words = str(death.get("cause", "?"))
    if death.get("detail"):
        words += f" ({clean(str(death['detail']))})"
    return words if death.get("ago_s") is None else f"{words}, {duration(death['ago_s'])} ago"
