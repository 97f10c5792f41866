"""`glmttsctl status`: the daemon's problems with what to do about them, and its figures, on one screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from .failures import NOT_READY, Finished
from .health import print_lines, problem_lines
from .session import session, shared_options
from .ui.humanize import Piece, duration, humanise, label_of
from .ui.wrap import clean, hanging, terminal_height, terminal_width

Status = Mapping[str, Any]


@click.command()
@shared_options
def status() -> None:
    """The daemon's problems and figures.

    Exits with 3 while a new job would not be spoken (paused, draining, no worker), as `health` does. Problems come
    first, the worst at the top, each with what to do. On a terminal that is too low for all of it they come last, the
    worst at the bottom. Figures that are zero or as they should be are left out; --json has them all.
    """
    run = session()
    answer = run.ask("status")
    run.show(answer, lambda answer: print_lines(lines_of(answer, terminal_width(), terminal_height())))
    if not _serves(answer):
        raise Finished(NOT_READY)


def _serves(answer: Status) -> bool:
    """Whether a job that comes now would be spoken, as `health` says it. An older daemon does not say it itself."""
    down = any(problem.get("severity") == "down" for problem in answer.get("attention") or [])
    return bool(answer.get("ready", answer.get("state", "running") == "running" and not down))


def lines_of(answer: Status, width: int | None, height: int | None) -> list[Piece]:
    """All lines with their colours, in ``width`` columns. None: of any width or height."""
    problems = problem_lines(answer.get("attention"), width)
    figures = _figures(answer, width)
    # The shell's prompt takes a line as well.
    if height is None or sum(map(len, problems)) + len(figures) < height:
        return [line for problem in problems for line in problem] + figures
    heading = [("Problems, the worst last:", "")] if len(problems) > 1 else []
    return figures + heading + [line for problem in reversed(problems) for line in problem]


def _figures(answer: Status, width: int | None) -> list[Piece]:
    texts = {"state": _state(answer)} | {key: _IN_WORDS[key](answer[key]) for key in _IN_WORDS if key in answer}
    # Keys that this program does not know are shown as they come.
    others = answer.keys() - _IN_WORDS.keys() - _NOT_SHOWN
    texts |= {
        label_of(key): humanise(key, answer[key]) for key in answer if key in others and not _is_well(key, answer)
    }
    texts = {label: text for label, text in texts.items() if text}
    wide = max(map(len, texts))
    return [(line, "") for label, text in texts.items() for line in hanging(f"{label:<{wide}}  ", text, width)]


_NOT_SHOWN = frozenset(
    {"state", "ready", "paused_since", "version", "uptime_s", "engine", "experimental", "pid", "alerts", "attention"}
)

#: Counts that stay zero while all is well.
_FAULTS = frozenset(
    {"connections_turned_away", "connections_ended_unread", "floods_ended", "internal_errors", "log_lines_dropped"}
    | {"quarantined"}
)


def _is_well(key: str, answer: Status) -> bool:
    return (key in _FAULTS and answer[key] == 0) or (key == "breaker" and answer[key] == "closed")


def _state(answer: Status) -> str:
    """``running, up 3 h 20 min, version 0.1.0, engine glmtts, pid 77``."""
    words = [humanise("", answer.get("state"))]
    if "paused_since" in answer:
        words[0] += f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(answer['paused_since']))}"
    if "uptime_s" in answer:
        words.append(f"up {duration(answer['uptime_s'])}")
    words += [f"{key} {humanise('', answer[key])}" for key in ("version", "engine", "pid") if key in answer]
    if answer.get("experimental"):
        words.append(f"experimental: {humanise('', answer['experimental'])}")
    return ", ".join(words)


def _numbers(values: Status, *leave_out: str) -> list[str]:
    """``1 ready``, ``0 busy``."""
    return [f"{humanise('', v)} {label_of(k)}" for k, v in values.items() if k not in leave_out]


def _workers(workers: Status) -> str:
    """``1 ready, 0 busy, 0 starting, 0 failed of 1``."""
    total = f" of {humanise('', workers['total'])}" if "total" in workers else ""
    return ", ".join(_numbers(workers, "total")) + total


def _queue(queue: Status) -> str:
    """``3 waiting (0 vip, 1 interactive, 2 batch), 1 running, 0 suspended``."""
    by_class = f" ({', '.join(_numbers(queue['by_class']))})" if queue.get("by_class") else ""
    words = [f"{humanise('', queue.get('waiting'))} waiting{by_class}"]
    words += _numbers(queue, "waiting", "by_class", "paused")
    return ", ".join([*words, "paused"] if queue.get("paused") else words)


def _counts(counts: Status) -> str:
    """``13 accepted; ended: 4 done, 1 worker_crashed; refused: 2 rate_limited``: codes stay as they are."""
    by_code = {key: codes for key, codes in counts.items() if isinstance(codes, Mapping)}
    # "done" is also among the ends.
    words = [", ".join(_numbers(counts, *by_code, *(["done"] if "ended" in by_code else [])))]
    words += [
        f"{label_of(key)}: " + ", ".join(f"{humanise('', n)} {clean(str(code))}" for code, n in codes.items())
        for key, codes in by_code.items()
        if codes
    ]
    return "; ".join(word for word in words if word)


def _kept(kept: Status) -> str:
    """``recordings 0 bytes, results 50.8 KiB``."""
    return ", ".join(f"{label_of(key.removesuffix('_bytes'))} {humanise(key, value)}" for key, value in kept.items())


def _journal(journal: Status) -> str:
    """Whether it can be used, and its counts."""
    well = journal.get("ok", True)
    state = "good" if well else f"can't be used: {humanise('', journal.get('problem') or 'reason unknown')}"
    return ", ".join([state, *_numbers(journal, "ok", "problem")])


def _estimates(estimates: Status) -> str:
    """How good the daemon's estimates of waiting times were."""
    jobs, share = estimates.get("jobs"), estimates.get("within_30_percent")
    if not jobs or share is None:
        return ""
    return f"{share * 100:.0f} % of {humanise('', jobs)} jobs started within 30 % of the estimated time"


#: Keys with words of their own, in this order; all other keys follow.
_IN_WORDS: dict[str, Callable[[Any], str]] = {
    "workers": _workers,
    "queue": _queue,
    "counts": _counts,
    "estimates": _estimates,
    "journal": _journal,
    "kept": _kept,
}


def alert_in_words(alert: Status) -> str:
    """``no_worker: every worker has failed (for 12.0 s)``."""
    words = f"{humanise('', alert.get('name', 'alert'))}: {humanise('', alert.get('message', ''))}"
    since = alert.get("for_s")
    return words if since is None else f"{words} (for {duration(since)})"
