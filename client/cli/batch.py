"""`glmttsctl batch`: every line of a JSONL file becomes an audio file; a bad one fails alone, a second run goes on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from glmtts.client import ConnectionLost, DaemonNotRunning, RequestFailed
from glmtts.client.batch_file import BadLine, BatchLine, OutputNames, read_lines
from glmtts.protocol.audio_formats import FORMATS, AudioFormat
from glmtts.protocol.requests import MAX_SEED, PRIORITIES

from .batch_journal import Journal, digest_of
from .batch_run import BatchRun, FailedLine, Line
from .failures import JOB_FAILED, Failure, Finished, describe, exit_code
from .files import write_atomically
from .output import duration, print_json
from .session import Session, session, shared_options
from .speak import parse_options

FAILURES = "failures.jsonl"

#: Failures that are listed on the terminal; the file has them all.
_SHOWN = 20


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    "folder",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the speech goes; made if it isn't there.",
)
@click.option(
    "--format", "format", type=click.Choice(FORMATS), help="By default what a line's output name says, or wav."
)
@click.option("--sample-rate", type=click.IntRange(8_000, 48_000), metavar="HZ")
@click.option("--voice", metavar="NAME", help="For lines that name none and have no prompt.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), metavar="N", help="For lines that have none.")
@click.option("--option", "options", multiple=True, metavar="K=V", callback=parse_options, help="For the engine.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="batch", show_default=True)
@click.option("--jobs", type=click.IntRange(1, 1_024), default=4, show_default=True, help="Lines under way at a time.")
@click.option("--retries", type=click.IntRange(0, 100), default=5, show_default=True, help="For each line.")
@shared_options
def batch(
    *,
    file: Path,
    folder: Path,
    format: AudioFormat | None,
    sample_rate: int | None,
    voice: str | None,
    seed: int | None,
    options: dict[str, Any],
    priority: str,
    jobs: int,
    retries: int,
) -> None:
    """Speak every line of FILE, in the JSONL dialect of GLM-TTS or of its web interfaces.

    \b
    {"uttid": "a1", "prompt_text": "...", "prompt_speech": "a.wav", "syn_text": "..."}
    {"output_name": "a1", "prompt_text": "...", "prompt_audio": "a.wav", "input_text": "..."}

    The prompt may be left out, and `voice` and `seed` may be added. Paths are relative to FILE. A line that can't be
    spoken fails alone (see DIR/failures.jsonl; exit code 4); called again, the command goes on where it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = session()
    common = {
        "sample_rate": sample_rate,
        "options": options or None,
        "priority": priority,
        # The batch file is the journal: what was under way when this program ends is asked for again by the next run.
        "durable": False,
    }
    with file.open("rb") as lines, Journal(folder) as journal:
        todo, there, bad = _plan(
            file=file,
            found=read_lines(lines),
            names=OutputNames(format),
            journal=journal,
            common=common,
            voice=voice,
            seed=seed,
        )
        with _progress(run, len(todo)) as (moved, note):
            work = BatchRun(folder, journal, jobs, retries, note, moved, failed=bad)
            try:
                asyncio.run(work.run(run.endpoint, todo))
                stopped: BaseException | None = None
            except (KeyboardInterrupt, DaemonNotRunning, ConnectionLost, RequestFailed, OSError) as error:
                stopped = error
    _finish(run, work, there=there, todo=len(todo), stopped=stopped)


def _plan(
    *,
    file: Path,
    found: list[BatchLine | BadLine],
    names: OutputNames,
    journal: Journal,
    common: dict[str, Any],
    voice: str | None,
    seed: int | None,
) -> tuple[list[Line], int, list[FailedLine]]:
    """The lines to speak, how many are there already, and those that can't be spoken."""
    todo: list[Line] = []
    bad: list[FailedLine] = []
    digests: dict[Path, str] = {}
    there = 0
    for line in found:
        if isinstance(line, BadLine):
            bad.append(FailedLine(line.number, "bad_line", line.reason))
            continue
        name, audio_format = names.give(line)
        request: dict[str, Any] = {**common, "format": audio_format, "seed": seed if line.seed is None else line.seed}
        identity = {"text": line.text, **request}
        try:
            if line.prompt is not None:
                recording = file.parent / line.prompt
                if recording not in digests:
                    digests[recording] = hashlib.sha256(recording.read_bytes()).hexdigest()
                request |= {"prompt": recording, "prompt_text": line.prompt_text}
                identity |= {"prompt": digests[recording], "prompt_text": line.prompt_text}
            else:
                request["voice"] = identity["voice"] = line.voice or voice
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            bad.append(FailedLine(line.number, "bad_line", f"prompt recording {line.prompt}: {reason}", name))
            continue
        # Who waits for it, and in which queue, makes no difference to the audio.
        digest = digest_of({k: v for k, v in identity.items() if k not in ("priority", "durable")})
        if journal.has(name, digest):
            there += 1
        else:
            todo.append(Line(line.number, name, digest, line.text, request))
    return todo, there, bad


@contextlib.contextmanager
def _progress(run: Session, total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar with the time left where a person looks on; elsewhere only the remarks."""
    if run.quiet or not sys.stderr.isatty() or not total:
        yield (lambda: None), run.note
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("lines"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), expand=True) as progress:
        task = progress.add_task("", total=total)
        yield (
            lambda: progress.advance(task),
            lambda text: progress.console.print(text, markup=False),
        )


def _finish(run: Session, work: BatchRun, *, there: int, todo: int, stopped: BaseException | None) -> None:
    """Say how it went, keep the failures, and end with the right exit code."""
    work.failed.sort(key=lambda failed: failed.number)
    folder = work.folder
    failures = folder / FAILURES
    if work.failed:
        lines = (json.dumps(failed.as_map(), ensure_ascii=False) for failed in work.failed)
        write_atomically(failures, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    elif stopped is None:
        failures.unlink(missing_ok=True)
    missing = todo - work.spoken - sum(failed.code != "bad_line" for failed in work.failed)
    if run.json and not isinstance(stopped, Exception):
        summary: dict[str, Any] = {"spoken": work.spoken, "skipped": there, "left": missing, "audio_s": work.audio_s}
        print_json({**summary, "failed": [failed.as_map() for failed in work.failed], "folder": str(folder)})
    for failed in work.failed[:_SHOWN]:
        run.note(f"line {failed.number}: {failed.reason}" + ("" if failed.code == "bad_line" else f" ({failed.code})"))
    if len(work.failed) > _SHOWN:
        run.note(f"... and {len(work.failed) - _SHOWN} more; all are in {failures}")
    parts = [f"{work.spoken} spoken ({duration(work.audio_s)} of speech)"]
    parts += [f"{there} there already"] if there else []
    parts += [f"{len(work.failed)} failed (see {failures})"] if work.failed else []
    parts += [f"{missing} left"] if missing else []
    run.note(f"{folder}: {', '.join(parts)}.")
    if isinstance(stopped, KeyboardInterrupt):
        run.note("Interrupted. The same command goes on from here.")
        raise Finished(130)
    if isinstance(stopped, Exception):
        described = describe(stopped)
        raise Failure(
            f"{described['message']} The same command goes on from here.",
            code=described["code"],
            status=exit_code(stopped) if not isinstance(stopped, RequestFailed) else 3,
            spoken=work.spoken,
            left=missing,
        )
    if work.failed:
        raise Finished(JOB_FAILED)
