"""`glmttsctl batch`: each line of a JSONL file becomes an audio file; a second run continues the first."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from pathlib import Path
from typing import Any

import click

from glmtts.client import ConnectionLost, DaemonNotRunning, RequestFailed, TooLarge
from glmtts.client.connection import read_recording
from glmtts.protocol.audio_formats import FORMATS, AudioFormat
from glmtts.protocol.requests import MAX_SEED, MAX_SPEED, MIN_SPEED, PRIORITIES

from ..failures import USAGE, Failure
from ..say import parse_options
from ..session import session, shared_options
from ..ui.signals import Signalled, until_signal
from .contents import WrongFile, read_batch
from .file import BadLine, BatchLine, Line, OutputNames
from .progress_file import NAME, ProgressFile, digest_of
from .report import finish, progress
from .runner import BatchRun, FailedLine

#: Lines submitted ahead, which the daemon speaks when this program has ended. By default the daemon takes 1,024 jobs of
#: one client; the rest is for other commands of the same user.
_AHEAD = 800
#: Jobs that end with this program: enough to keep a few workers busy.
_AHEAD_NOT_DURABLE = 4
#: Folders above FILE in which recordings are looked up.
_MOST_PARENTS = 5


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    "folder",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the speech; created if missing.",
)
@click.option(
    "--format", "format", type=click.Choice(FORMATS), help="By default what a line's output name says, or wav."
)
@click.option("--sample-rate", type=click.IntRange(8_000, 48_000), metavar="HZ")
@click.option("--voice", metavar="NAME", help="For lines that name none and have no prompt.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), metavar="N", help="For lines that have none.")
@click.option(
    "--speed",
    type=click.FloatRange(MIN_SPEED, MAX_SPEED),
    metavar="X",
    help="0.5 to 2, for lines that have none: 2 is twice as fast, at the same pitch.",
)
@click.option("--option", "options", multiple=True, metavar="K=V", callback=parse_options, help="For the engine.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="batch", show_default=True)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1_024),
    metavar="N",
    help=f"Submit N lines ahead.  [default: {_AHEAD}; {_AHEAD_NOT_DURABLE} with --no-durable]",
)
@click.option("--retries", type=click.IntRange(0, 100), default=5, show_default=True, help="For each line.")
@click.option("--resume", is_flag=True, help="Continue the batch in DIR; fail if there is none.")
@click.option(
    "--durable/--no-durable",
    default=True,
    show_default=True,
    help="Submit durable jobs: the daemon finishes them even if this command or the daemon itself ends.",
)
@click.option("--cancel-on-exit", is_flag=True, help="Cancel the submitted jobs when this command is interrupted.")
@shared_options
def batch(
    *,
    file: Path,
    folder: Path,
    format: AudioFormat | None,
    jobs: int | None,
    retries: int,
    resume: bool,
    durable: bool,
    cancel_on_exit: bool,
    **request: Any,
) -> None:
    """Speak every line of FILE, which is JSONL.

    Its lines are in the dialect of GLM-TTS or of its web interfaces:

    \b
    {"uttid": "a1", "prompt_text": "...", "prompt_speech": "a.wav", "syn_text": "..."}
    {"output_name": "a1", "prompt_text": "...", "prompt_audio": "a.wav", "input_text": "..."}

    The prompt may be left out, and `voice`, `seed`, `speed` and `label` may be added; without a label, a line's name
    labels its job. A path is looked up beside FILE, in the current folder, and in the folders above FILE, as
    upstream's examples need it: the first that is there is taken. FILE may also be an array of such objects, or in
    UTF-16. A line that can't be spoken fails alone (see DIR/failures.jsonl; exit code 4). Run the command again to
    continue where it stopped.

    The jobs are durable: the daemon finishes them when this command is interrupted or its terminal is closed. The same
    command, with or without --resume, then fetches the speech and continues; no line is spoken twice.
    """
    if resume and not (folder / NAME).exists():
        raise Failure(f"{folder}: no batch was begun there; leave out --resume to begin one", status=USAGE)
    run = session()
    request["options"] = request["options"] or None
    try:
        with file.open("rb") as opened:
            found = read_batch(opened, file)
    except WrongFile as wrong:
        raise Failure(str(wrong), status=USAGE) from None
    folder.mkdir(parents=True, exist_ok=True)
    with ProgressFile(folder) as record:
        todo, there, bad = _plan(_places(file), found, OutputNames(format), record, request)
        with progress(run, len(todo)) as (moved, note):
            ahead = jobs or (_AHEAD if durable else _AHEAD_NOT_DURABLE)
            work = BatchRun(folder, record, ahead, retries, note, moved, durable, cancel_on_exit, failed=bad)
            stopped: BaseException | None = None
            try:
                asyncio.run(until_signal(work.run(run.endpoint, todo)))
            except (KeyboardInterrupt, Signalled, DaemonNotRunning, ConnectionLost, RequestFailed, OSError) as error:
                stopped = error
    finish(run, work, there=there, todo=len(todo), stopped=stopped)


def _places(file: Path) -> list[Path]:
    """The folders in which a relative path of ``file`` is looked up, in this order.

    Upstream's examples name recordings from the checkout, and are in a folder of it.
    """
    above = [folder for folder in file.resolve().parents[:_MOST_PARENTS] if folder != folder.parent]
    return list(dict.fromkeys((file.absolute().parent, Path.cwd(), *above)))


def _find(path: str, places: list[Path]) -> Path:
    """The recording, in the first place that has it. Raises OSError, ValueError."""
    tried = list(dict.fromkeys(place / path for place in places))
    for candidate in tried:
        if candidate.exists():
            return candidate
    where = f" in {', '.join(map(str, places))}" if len(tried) > 1 else ""
    raise FileNotFoundError(errno.ENOENT, f"No such file{where}", path)


def _plan(
    places: list[Path],
    found: list[BatchLine | BadLine],
    names: OutputNames,
    record: ProgressFile,
    common: dict[str, Any],
) -> tuple[list[Line], int, list[FailedLine]]:
    """The lines to speak, the number of lines that are done already, and the lines that can't be spoken."""
    todo: list[Line] = []
    bad: list[FailedLine] = []
    recordings: dict[Path, tuple[str, int]] = {}
    there = 0
    for line in found:
        if isinstance(line, BadLine):
            bad.append(FailedLine(line.number, "bad_line", line.reason))
            continue
        name, audio_format = names.give(line)
        request = {**common, "format": audio_format, "seed": common["seed"] if line.seed is None else line.seed}
        digest, size = "", 0
        if line.prompt is not None:
            try:
                path = _find(line.prompt, places)
                if path not in recordings:
                    recording = read_recording(path) or b""
                    recordings[path] = hashlib.sha256(recording).hexdigest(), len(recording)
            except (OSError, ValueError, TooLarge) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                bad.append(FailedLine(line.number, "bad_line", f"prompt recording {line.prompt}: {reason}", name))
                continue
            digest, size = recordings[path]
            del request["voice"]
            request |= {"prompt": path, "prompt_text": line.prompt_text}
        else:
            request["voice"] = line.voice or common["voice"]
        request["label"] = line.label
        request["speed"] = line.speed or common["speed"]
        if request["speed"] in (None, 1.0):
            # Lines that an earlier version has spoken have none in their identity.
            del request["speed"]
        # Priority and label make no difference to the audio; of the recording, its content does.
        identity = {k: v for k, v in request.items() if k not in ("priority", "label")} | {"text": line.text}
        whole = digest_of(identity | ({"prompt": digest} if line.prompt is not None else {}))
        if record.has(name, whole):
            there += 1
        else:
            todo.append(Line(line.number, name, whole, line.text, request, size))
    return todo, there, bad
