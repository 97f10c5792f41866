"""One picture of `glmttsctl top`: the snapshot as lines that fill a screen of any size and fit its width."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from ..gpus import loads, no_gpu_in_words, nvml_in_words, shares
from ..status import alert_in_words
from ..ui.humanize import duration, humanise, memory_bar, part_of, sparkline
from ..ui.screen import cut
from ..ui.wrap import cells, clean
from ..workers import table_of
from .feed import Snapshot, ended_of

_CLASSES = ("vip", "interactive", "batch")
_STATES = {"running": "green", "paused": "yellow", "draining": "yellow", "drained": "yellow", "stopping": "red"}
_NOT_FAILED = frozenset({"done", "cancelled"})
_LEAST_EVENTS = 3
_SPARK = 24
_BAR = 30


def frame(snapshot: Snapshot, width: int, height: int | None, keys: str = "") -> list[Text]:
    """Exactly ``height`` lines of at most ``width`` cells; any number of lines for None.

    ``keys`` is the last line. Where there is too little room, a line says how many workers or GPUs are left out.
    """
    head = [*_header(snapshot), *_alerts(snapshot)]
    gpus = _gpu_lines(snapshot, width)
    workers = _worker_lines(snapshot, width)
    remarks = _remarks(snapshot.workers)
    events = _event_lines(snapshot)
    if height is None:
        heard = [Text(), *events] if snapshot.happenings else []
        lines = [*head, Text(), *gpus, Text(), *workers, *remarks, *heard]
        return [cut(line, width) for line in lines]
    foot = Text(keys, "bright_black")
    if snapshot.gpus.get("gpus"):
        foot = Text.assemble(
            (keys, "bright_black"), ("    █", "cyan"), " our workers  ", ("▒", "yellow"), " others  · free"
        )
    # Three empty lines separate the parts.
    room = height - len(head) - 4
    for_events = _LEAST_EVENTS + 1
    gpus = _first(gpus, max(2, room // 3, room - len(workers) - for_events), "GPUs", "gpus")
    workers = _first(workers, max(3, room - len(gpus) - for_events), "workers", "workers")
    remarks = remarks[: max(0, room - len(gpus) - len(workers) - for_events)]
    left = room - len(gpus) - len(workers) - len(remarks)
    shown = [events[0], *events[1:][1 - left :]] if left > 1 else []
    lines = [*head, Text(), *gpus, Text(), *workers, *remarks, Text(), *shown][: height - 1]
    lines += [Text() for _ in range(height - 1 - len(lines))]
    return [cut(line, width) for line in [*lines, foot]]


def _first(lines: list[Text], most: int, what: str, command: str) -> list[Text]:
    """At most ``most`` lines, the last of which says how many are missing."""
    if len(lines) <= most:
        return lines
    kept = max(most - 1, 1)
    return [*lines[:kept], Text(f"... and {len(lines) - kept} more {what}: glmttsctl {command}", "bright_black")]


def _header(snapshot: Snapshot) -> list[Text]:
    status = snapshot.status
    clock = (f"  {time.strftime('%H:%M:%S')}", "bright_black")
    waiting = ("waiting for the daemon...", "yellow")
    if not status:
        return [Text.assemble(waiting, clock), Text(snapshot.trouble)]
    title = (f"glmttsd {humanise('', status.get('version'))}  ", "bold")
    if snapshot.trouble:
        return [Text.assemble(title, waiting, "  last known state:"), Text(snapshot.trouble, "bright_black")]
    state = str(status.get("state", "?"))
    up = f"  up {duration(status.get('uptime_s') or 0)}  engine {humanise('', status.get('engine'))}"
    first = Text.assemble(title, (state, _STATES.get(state, "red")), up, clock)
    return [first, _jobs_line(snapshot), _queue_line(snapshot)]


def _jobs_line(snapshot: Snapshot) -> Text:
    ended = ended_of(snapshot.status)
    failed = sum(count for outcome, count in ended.items() if outcome not in _NOT_FAILED)
    return Text.assemble(
        ("jobs   ", "bright_black"),
        f"done {ended.get('done', 0):,}  failed ",
        (f"{failed:,}", "red" if failed else ""),
        f"  cancelled {ended.get('cancelled', 0):,}",
        (f"  {snapshot.rate:.1f}/s" if snapshot.rate is not None else "", "cyan"),
    )


def _queue_line(snapshot: Snapshot) -> Text:
    queue = snapshot.status.get("queue") or {}
    by_class = queue.get("by_class") or {}
    line = Text.assemble(
        ("queue  ", "bright_black"), f"waiting {queue.get('waiting', 0)}, running {queue.get('running', 0)}"
    )
    for name in [*(c for c in _CLASSES if c in by_class), *(c for c in by_class if c not in _CLASSES)]:
        counts, waiting = snapshot.classes.get(name) or {}, by_class[name]
        line.append(f"  {name} ", "bright_black")
        line.append(f"{humanise('', waiting)}/{counts.get('running', 0)}", "yellow" if waiting else "")
        if suspended := counts.get("suspended"):
            line.append(f" ({suspended} suspended)", "yellow")
    return line


def _alerts(snapshot: Snapshot) -> list[Text]:
    alerts = snapshot.status.get("alerts") or []
    lines = [Text(f"! {alert_in_words(alert)}", "red") for alert in alerts if not snapshot.trouble]
    return _first(lines, 3, "alerts", "status")


def _gpu_lines(snapshot: Snapshot, width: int) -> list[Text]:
    nvml: Mapping[str, Any] = snapshot.gpus.get("nvml") or {}
    found: Sequence[Mapping[str, Any]] = snapshot.gpus.get("gpus") or []
    if not found:
        words = "no GPU: NVML is absent" if nvml.get("state") == "absent" else no_gpu_in_words(nvml)
        return [Text(words, "bright_black")] if snapshot.gpus else []
    texts = ["  ".join([part_of(gpu.get("used"), gpu.get("total")), *loads(gpu)]) for gpu in found]
    wide = max(map(cells, texts))
    label = max(len(f"GPU {gpu.get('index')} ") for gpu in found)
    bar = max(8, min(_BAR, width - label - wide - 24))
    lines = []
    for gpu, text in zip(found, texts, strict=True):
        state, detail = str(gpu.get("state", "?")), clean(str(gpu.get("detail") or ""))
        line = Text.assemble((f"GPU {gpu.get('index')} ".ljust(label), "bright_black"))
        if state == "lost":
            line.append(f"lost: {detail}", "red").append(f"  it had {text}", "bright_black")
        else:
            last = (
                (f"  {state}: {detail}", "red")
                if state != "ok"
                else (f"  {clean(str(gpu.get('name')))}", "bright_black")
            )
            line += Text.assemble(
                *memory_bar(*shares(gpu), gpu.get("total") or 0, bar), f"  {text}{' ' * (wide - cells(text))}", last
            )
        lines.append(line)
    if nvml.get("state") not in ("ok", None):
        lines.insert(0, Text(f"NVML {nvml_in_words(nvml)}", "red"))
    return lines


def _worker_lines(snapshot: Snapshot, width: int) -> list[Text]:
    if not snapshot.workers:
        return [Text("no workers", "bright_black")] if snapshot.status else []
    sparks = [sparkline(snapshot.series.get(str(worker.get("name")), []), _SPARK) for worker in snapshot.workers]
    return table_of(snapshot.workers, width, sparks)


def _remarks(found: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Why a worker waits or is being replaced."""
    return [
        Text(f"  {clean(str(w.get('name')))}: {clean(str(w['reason']))}", "yellow") for w in found if w.get("reason")
    ]


def _event_lines(snapshot: Snapshot) -> list[Text]:
    lines = [Text("RECENT EVENTS", "bright_black")]
    for happening in snapshot.happenings:
        stamp = time.strftime("%H:%M:%S", time.localtime(happening.at))
        lines.append(Text.assemble((f"{stamp}  ", "bright_black"), (happening.words, happening.style)))
    return lines if len(lines) > 1 else [*lines, Text("none yet", "bright_black")]
