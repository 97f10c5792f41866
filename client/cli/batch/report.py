"""Output of a batch: the progress bar, the failures, and the closing summary."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from glmtts.client import RequestFailed
from glmtts.client.files import write_whole

from ..failures import JOB_FAILED, Failure, Finished, describe, exit_code
from ..session import Session
from ..ui.humanize import duration
from ..ui.output import print_json
from ..ui.signals import Signalled
from .runner import BatchRun, has_no_journal

FAILURES = "failures.jsonl"

#: Failures that are listed on the terminal; the file has them all.
_SHOWN = 20


@contextlib.contextmanager
def progress(run: Session, total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar with the time left on a terminal, elsewhere only the remarks: yields the functions for both."""
    if run.quiet or not sys.stderr.isatty() or not total:
        yield (lambda: None), run.note
        return

    from rich import progress as bars
    from rich.console import Console

    counts = (bars.MofNCompleteColumn(), bars.TextColumn("lines"), bars.TimeElapsedColumn())
    columns = (bars.BarColumn(bar_width=None), *counts, bars.TextColumn("left:"), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True, highlight=False), expand=True) as progress:
        task = progress.add_task("", total=total)
        yield (lambda: progress.advance(task), lambda text: progress.console.print(text, markup=False))


def finish(run: Session, work: BatchRun, *, there: int, todo: int, stopped: BaseException | None) -> None:
    """Print the summary, write the failures, and end with the right exit code."""
    work.failed.sort(key=lambda failed: failed.number)
    folder = work.folder
    failures = folder / FAILURES
    if work.failed:
        lines = (json.dumps(failed.as_map(), ensure_ascii=False) for failed in work.failed)
        write_whole(failures, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    elif stopped is None:
        failures.unlink(missing_ok=True)
    missing = todo - work.spoken - sum(failed.code != "bad_line" for failed in work.failed)
    if run.json and (not isinstance(stopped, Exception) or isinstance(stopped, Signalled)):
        summary: dict[str, Any] = {"spoken": work.spoken, "skipped": there, "left": missing, "audio_s": work.audio_s}
        summary |= {"in_daemon": work.in_daemon, "failed": [failed.as_map() for failed in work.failed]}
        print_json({**summary, "folder": str(folder)})
    for failed in work.failed[:_SHOWN]:
        run.note(f"line {failed.number}: {failed.reason}" + ("" if failed.code == "bad_line" else f" ({failed.code})"))
    if len(work.failed) > _SHOWN:
        run.note(f"... and {len(work.failed) - _SHOWN} more; all are in {failures}")
    parts = [f"{work.spoken} spoken ({duration(work.audio_s)} of speech)"]
    parts += [f"{there} done before"] if there else []
    parts += [f"{len(work.failed)} failed (see {failures})"] if work.failed else []
    parts += [f"{missing} left"] if missing else []
    run.note(f"{folder}: {', '.join(parts)}.")
    if isinstance(stopped, (KeyboardInterrupt, Signalled)):
        run.note(f"Interrupted. {_what_next(work, missing)}")
        raise Finished(128 + (stopped.number if isinstance(stopped, Signalled) else signal.SIGINT))
    if isinstance(stopped, Exception):
        described = describe(stopped)
        raise Failure(
            f"{described['message'].removesuffix('.')}. {_advice(stopped)}{_what_next(work, missing)}",
            code=described["code"],
            status=exit_code(stopped) if not isinstance(stopped, RequestFailed) else 3,
            spoken=work.spoken,
            left=missing,
            in_daemon=work.in_daemon,
        )
    if work.failed:
        raise Finished(JOB_FAILED)


def _what_next(work: BatchRun, missing: int) -> str:
    """What becomes of the lines that are left, and how to get their speech."""
    if not (there := work.in_daemon):
        return "Run the same command again to continue."
    lines, them = ("1 line", "it") if there == 1 else (f"{there} lines", "them")
    rest = missing - there
    others = f" and continue with the {'other' if rest == 1 else f'{rest} others'}" if rest > 0 else ""
    return f"The daemon finishes {lines}; run the same command with --resume to fetch {them}{others}."


def _advice(stopped: Exception) -> str:
    if not has_no_journal(stopped):
        return ""
    return (
        "`glmttsctl status` shows the state of the journal. With --no-durable lines are spoken without it; jobs then "
        "end with this command or the daemon, and the next run submits them again. "
    )
