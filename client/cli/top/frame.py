"""One picture of `glmttsctl top`: the snapshot as lines that fill a screen of any size and never run over its edge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from ..gpus import no_gpu_in_words, nvml_in_words, shares
from ..status import alert_in_words
from ..ui.humanize import Piece, memory_bar, part_of, sparkline
from ..ui.output import cells, clean, duration, humanise
from ..ui.screen import text_of
from ..ui.table import Column, lay_out
from ..workers import columns_of
from .feed import Snapshot, ended_of

Line = list[Piece]

_CLASSES = ("vip", "interactive", "batch")
_STATES = {"running": "green", "paused": "yellow", "draining": "yellow", "drained": "yellow", "stopping": "red"}
_NOT_FAILED = frozenset({"done", "cancelled"})
_LEAST_EVENTS = 3
_SPARK = 24
_BAR = 30


def frame(snapshot: Snapshot, width: int, height: int | None, keys: str = "") -> list[Text]:
    """Lines of at most ``width`` cells; exactly ``height`` of them, or as many as it takes where it is None.

    ``keys`` is the last line. Where there is too little room, workers, GPUs and events are left out by whole lines, and
    a line says how many.
    """
    head = [*_header(snapshot), *_alerts(snapshot)]
    gpus = _gpu_lines(snapshot, width)
    workers = _worker_lines(snapshot, width)
    remarks = _remarks(snapshot.workers)
    events = _event_lines(snapshot)
    if height is None:
        # Who listens for one moment has heard nothing.
        heard = [[], *events] if snapshot.happenings else []
        lines = [*head, [], *gpus, [], *workers, *remarks, *heard]
        return [text_of(line, width) for line in lines]
    foot = [_foot(keys, legend=bool(snapshot.gpus.get("gpus")))]
    # Between the parts there is an empty line, and above the events one with their name.
    room = height - len(head) - len(foot) - 3
    for_events = _LEAST_EVENTS + 1
    gpus = _cut(gpus, max(2, room // 3, room - len(workers) - for_events), "GPUs", "gpus")
    workers = _cut(workers, max(3, room - len(gpus) - for_events), "workers", "workers")
    remarks = remarks[: max(0, room - len(gpus) - len(workers) - for_events)]
    left = room - len(gpus) - len(workers) - len(remarks)
    shown = [events[0], *events[1:][1 - left :]] if left > 1 else []
    lines = [*head, [], *gpus, [], *workers, *remarks, [], *shown]
    body = height - len(foot)
    lines = lines[:body] + [[] for _ in range(body - len(lines))]
    return [text_of(line, width) for line in [*lines, *foot]]


def _foot(keys: str, *, legend: bool) -> Line:
    line: Line = [(keys, "bright_black")]
    if legend:
        line += [("    █", "cyan"), (" our workers  ", "bright_black"), ("▒", "yellow")]
        line += [(" others  · free", "bright_black")]
    return line


def _cut(lines: list[Line], most: int, what: str, command: str) -> list[Line]:
    """At most ``most`` lines, the last of which says how many are missing."""
    if len(lines) <= most:
        return lines
    kept = max(most - 1, 1)
    return [*lines[:kept], [(f"... and {len(lines) - kept} more {what}: glmttsctl {command}", "bright_black")]]


def _header(snapshot: Snapshot) -> list[Line]:
    status = snapshot.status
    clock = time.strftime("%H:%M:%S")
    if not status:
        return [[("waiting for the daemon...", "yellow"), (f"  {clock}", "bright_black")], [(snapshot.trouble, "")]]
    state = str(status.get("state", "?"))
    first: Line = [(f"glmttsd {humanise('', status.get('version'))}  ", "bold")]
    if snapshot.trouble:
        first += [("waiting for the daemon...", "yellow"), ("  what follows is the last that was known", "")]
        return [first, [(snapshot.trouble, "bright_black")]]
    first += [(state, _STATES.get(state, "red")), (f"  up {duration(status.get('uptime_s') or 0)}", "")]
    first += [(f"  engine {humanise('', status.get('engine'))}", ""), (f"  {clock}", "bright_black")]
    return [first, _jobs_line(snapshot), _queue_line(snapshot)]


def _jobs_line(snapshot: Snapshot) -> Line:
    ended = ended_of(snapshot.status)
    failed = sum(count for outcome, count in ended.items() if outcome not in _NOT_FAILED)
    line: Line = [("jobs   ", "bright_black"), (f"done {ended.get('done', 0):,}", "")]
    line += [("  failed ", ""), (f"{failed:,}", "red" if failed else "")]
    line += [(f"  cancelled {ended.get('cancelled', 0):,}", "")]
    return [*line, (f"  {snapshot.rate:.1f}/s", "cyan")] if snapshot.rate is not None else line


def _queue_line(snapshot: Snapshot) -> Line:
    queue = snapshot.status.get("queue")
    queue = queue if isinstance(queue, Mapping) else {}
    by_class = queue.get("by_class")
    by_class = by_class if isinstance(by_class, Mapping) else {}
    names = [*(c for c in _CLASSES if c in by_class), *(c for c in by_class if c not in _CLASSES)]
    line: Line = [("queue  ", "bright_black")]
    line += [(f"waiting {queue.get('waiting', 0)}, running {queue.get('running', 0)}", "")]
    for name in names:
        waiting, running = by_class[name], snapshot.running.get(name, 0)
        line.append((f"   {name} ", "bright_black"))
        line.append((f"{humanise('', waiting)}/{running}", "yellow" if waiting else ""))
        if aside := snapshot.suspended.get(name):
            line.append((f" ({aside} aside)", "yellow"))
    return line


def _alerts(snapshot: Snapshot) -> list[Line]:
    alerts = snapshot.status.get("alerts") or []
    lines: list[Line] = [[(f"! {alert_in_words(alert)}", "red")] for alert in alerts if not snapshot.trouble]
    return _cut(lines, 3, "alerts", "status")


def _gpu_lines(snapshot: Snapshot, width: int) -> list[Line]:
    answer = snapshot.gpus
    found = [gpu for gpu in answer.get("gpus") or [] if isinstance(gpu, Mapping)]
    if not found:
        if not answer:
            return []
        nvml = answer.get("nvml")
        absent = isinstance(nvml, Mapping) and nvml.get("state") == "absent"
        return [[("no GPU: NVML is absent" if absent else no_gpu_in_words(nvml), "bright_black")]]
    amounts = [part_of(gpu.get("used"), gpu.get("total")) for gpu in found]
    loads = [f"{gpu['utilization']} %" if gpu.get("utilization") is not None else "" for gpu in found]
    heats = [f"{gpu['temperature']} °C" if gpu.get("temperature") is not None else "" for gpu in found]
    widths = [max(map(cells, column)) for column in (amounts, loads, heats)]
    names = [f"GPU {humanise('', gpu.get('index'))} " for gpu in found]
    label = max(map(len, names))
    bar = max(8, min(_BAR, width - label - sum(widths) - 24))
    lines = []
    for gpu, name, *texts in zip(found, names, amounts, loads, heats, strict=True):
        state, detail = str(gpu.get("state", "?")), clean(str(gpu.get("detail") or ""))
        line: Line = [(name.ljust(label), "bright_black")]
        if state == "lost":
            lines.append([*line, (f"lost: {detail}", "red"), (f"  it had {texts[0]}", "bright_black")])
            continue
        line += memory_bar(*shares(gpu), gpu.get("total") or 0, bar)
        for text, wide in zip(texts, widths, strict=True):
            line.append((f"  {' ' * (wide - cells(text))}{text}", ""))
        line.append((f"  {state}: {detail}", "red") if state != "ok" else (f"  {_name(gpu)}", "bright_black"))
        lines.append(line)
    nvml = answer.get("nvml")
    if isinstance(nvml, Mapping) and nvml.get("state") not in ("ok", None):
        lines.insert(0, [(f"NVML {nvml_in_words(nvml)}", "red")])
    return lines


def _name(gpu: Mapping[str, Any]) -> str:
    return clean(str(gpu.get("name") or ""))


def _worker_lines(snapshot: Snapshot, width: int) -> list[Line]:
    found = snapshot.workers
    if not found:
        return [[("no workers", "bright_black")]] if snapshot.status else []
    sparks = [sparkline(snapshot.series.get(str(worker.get("name")), []), _SPARK) for worker in found]
    wide = max(map(len, sparks), default=0)
    columns = columns_of(found, brief=True)
    least = lay_out([c for c in columns if c.rank < 6], None)
    # The sparkline takes what is left, and of a long one the newest part.
    room = min(wide, max(8, width - max(sum(cells(text) for text, _ in line) for line in least)))
    columns.append(Column("memory", [spark[-room:] for spark in sparks], rank=6, styles=["cyan"] * len(found)))
    return lay_out(columns, width)


def _remarks(found: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Why a worker waits, or is being replaced."""
    return [[(f"  {clean(str(w.get('name')))}: {clean(str(w['reason']))}", "yellow")] for w in found if w.get("reason")]


def _event_lines(snapshot: Snapshot) -> list[Line]:
    lines: list[Line] = [[("RECENT EVENTS", "bright_black")]]
    for happening in snapshot.happenings:
        stamp = time.strftime("%H:%M:%S", time.localtime(happening.at))
        lines.append([(f"{stamp}  ", "bright_black"), (happening.words, happening.style)])
    if len(lines) == 1:
        lines.append([("none yet", "bright_black")])
    return lines
