"""`glmttsctl status`: what is wrong with what to do, and the figures of the daemon, so that a screen has it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from .failures import NOT_READY, Finished
from .health import print_lines, problems_in_lines
from .session import session, shared_options
from .ui.humanize import Piece
from .ui.output import clean, duration, humanise, label_of, plain, print_json
from .ui.wrap import hung, terminal_height, terminal_width

Status = Mapping[str, Any]


@click.command()
@shared_options
def status() -> None:
    """The daemon at a glance; exits with 3 while it can't start jobs.

    What is wrong comes first, the gravest at the top, with what to do. On a terminal that is too low for all of it,
    it comes last, the gravest at the bottom: what has scrolled away are figures. What is not said is zero, or as it
    should be; --json has every figure.
    """
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.call("status"))
    if run.json:
        print_json(answer)
    else:
        print_lines(lines_of(answer, terminal_width(), terminal_height()))
    if answer.get("state") in ("draining", "drained", "stopping"):
        raise Finished(NOT_READY)


def lines_of(answer: Status, width: int | None, height: int | None) -> list[Piece]:
    """All of it, each line with its colour. None: as wide, as high as it gets."""
    problems = problems_in_lines(answer.get("attention"), width) or [
        [(line, "red") for line in hung("! ", words, width)] for words in _complaints(answer)
    ]
    figures = _figures(answer, width)
    # The shell's prompt takes a line as well.
    if height is None or sum(map(len, problems)) + len(figures) < height:
        return [line for problem in problems for line in problem] + figures
    heading = [("What is wrong, the gravest last:", "")] if len(problems) > 1 else []
    return figures + heading + [line for problem in reversed(problems) for line in problem]


# --- the figures


def _figures(answer: Status, width: int | None) -> list[Piece]:
    texts = {label: text for label, text in _texts(answer).items() if text}
    wide = max(map(len, texts), default=0)
    return [(line, "") for label, text in texts.items() for line in hung(f"{label:<{wide}}  ", text, width)]


def _texts(answer: Status) -> dict[str, str]:
    """A line for what belongs together, by its label: of an empty text there is nothing to be said."""
    texts = {"state": _state(answer)} | {key: _IN_WORDS[key](answer[key]) for key in _IN_WORDS if key in answer}
    said = _SAID_WITH_STATE | _IN_WORDS.keys() | {"state", "alerts", "attention"}
    # What this program knows nothing of is shown as it comes.
    others = {key: value for key, value in answer.items() if key not in said}
    return texts | {label_of(key): humanise(key, value) for key, value in others.items() if not _is_nothing(key, value)}


_SAID_WITH_STATE = frozenset({"version", "uptime_s", "engine", "pid"})

#: What should not happen. While it has not, nobody needs to read so.
_HAS_NOT_HAPPENED = frozenset(
    {"connections_turned_away", "connections_ended_unread", "floods_ended", "internal_errors", "log_lines_dropped"}
    | {"quarantined"}
)


def _is_nothing(key: str, value: Any) -> bool:
    return (key in _HAS_NOT_HAPPENED and value == 0) or (key == "breaker" and value == "closed")


def _state(answer: Status) -> str:
    """``running, up 3 h 20 min, version 0.1.0, engine glmtts, pid 77``."""
    words = [humanise("", answer.get("state"))]
    if "uptime_s" in answer:
        words.append(f"up {humanise('uptime_s', answer['uptime_s'])}")
    return ", ".join(
        words + [f"{key} {humanise('', answer[key])}" for key in ("version", "engine", "pid") if key in answer]
    )


def _numbers(values: Status, *leave_out: str) -> list[str]:
    """``1 ready``, ``0 busy``."""
    return [f"{humanise('', v)} {label_of(k)}" for k, v in values.items() if k not in leave_out]


def _workers(workers: Any) -> str:
    """``1 ready, 0 busy, 0 starting, 0 failed of 1``."""
    if not isinstance(workers, Mapping):
        return humanise("", workers)
    total = f" of {humanise('', workers['total'])}" if "total" in workers else ""
    return ", ".join(_numbers(workers, "total")) + total


def _queue(queue: Any) -> str:
    """``3 waiting (0 vip, 1 interactive, 2 batch), 1 running, 0 put aside``."""
    if not isinstance(queue, Mapping):
        return humanise("", queue)
    classes = queue.get("by_class")
    by_class = f" ({', '.join(_numbers(classes))})" if isinstance(classes, Mapping) else ""
    words = [f"{humanise('', queue.get('waiting'))} waiting{by_class}"]
    words += _numbers({"put aside" if k == "suspended" else k: v for k, v in queue.items()}, "waiting", *_NOT_COUNTED)
    return ", ".join([*words, "paused"] if queue.get("paused") else words)


_NOT_COUNTED = ("by_class", "paused")


def _counts(counts: Any) -> str:
    """``13 accepted; ended: 4 done, 1 worker_crashed; refused: 2 rate_limited``: codes stay as they are."""
    if not isinstance(counts, Mapping):
        return humanise("", counts)
    by_code = {key: codes for key, codes in counts.items() if isinstance(codes, Mapping)}
    # What is done has ended, and is counted there.
    words = [", ".join(_numbers(counts, *by_code, *(["done"] if "ended" in by_code else [])))]
    for key, codes in by_code.items():
        if codes:
            words.append(
                f"{label_of(key)}: " + ", ".join(f"{humanise('', n)} {clean(str(c))}" for c, n in codes.items())
            )
    return "; ".join(word for word in words if word)


def _kept(kept: Any) -> str:
    """``recordings 0 bytes, results 50.8 KiB``."""
    if not isinstance(kept, Mapping):
        return humanise("", kept)
    return ", ".join(f"{label_of(key.removesuffix('_bytes'))} {humanise(key, value)}" for key, value in kept.items())


def _journal(journal: Any) -> str:
    """Whether it can be used, and what else is said of it."""
    if not isinstance(journal, Mapping):
        return humanise("", journal)
    state = "good" if _is_good(journal) else f"can't be used: {_problem(journal)}"
    return ", ".join([state, *_numbers(journal, "ok", "problem")])


def _is_good(journal: Any) -> bool:
    return not isinstance(journal, Mapping) or bool(journal.get("ok", True))


def _problem(journal: Status) -> str:
    return humanise("", journal.get("problem") or "it can't be used now")


def _estimates(estimates: Any) -> str:
    """How good the daemon's words about waiting were."""
    if not isinstance(estimates, Mapping):
        return humanise("", estimates)
    jobs, share = estimates.get("jobs"), estimates.get("within_30_percent")
    if not jobs or not isinstance(share, (int, float)):
        return ""
    return f"{share * 100:.0f} % of {humanise('', jobs)} jobs started within 30 % of the time told"


#: What is said in words of its own, in this order; everything else comes after it.
_IN_WORDS: dict[str, Callable[[Any], str]] = {
    "workers": _workers,
    "queue": _queue,
    "counts": _counts,
    "estimates": _estimates,
    "journal": _journal,
    "kept": _kept,
}


# --- what an older daemon complains of


def _complaints(answer: Status) -> list[str]:
    """Alerts, and a journal that fails: what ``attention`` has, and more of it, where the daemon has that."""
    alerts = answer.get("alerts") or []
    found = [alert_in_words(alert) for alert in alerts]
    told = any(isinstance(alert, Mapping) and alert.get("name") == "journal" for alert in alerts)
    journal = answer.get("journal")
    if journal and not _is_good(journal) and not told:
        found.append(f"journal: durable jobs, batch jobs among them, are refused: {_problem(journal)}")
    return found


def alert_in_words(alert: Any) -> str:
    """``no_worker: every worker has failed (for 12.0 s)``."""
    if not isinstance(alert, Mapping):
        return humanise("", alert)
    words = f"{humanise('', alert.get('name', 'alert'))}: {humanise('', alert.get('message', ''))}"
    since = alert.get("for_s")
    return f"{words} (for {duration(since)})" if isinstance(since, (int, float)) else words
