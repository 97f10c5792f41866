"""`glmttsctl say`: one text becomes speech in a file, a pipe, the daemon's output folder or the loudspeaker."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from glmtts.client import Chunk, Client, JobEvent, Speech, Timeout
from glmtts.client.files import write_whole
from glmtts.protocol.audio_formats import FORMATS, AudioFormat, format_of_name, misnamed
from glmtts.protocol.events import Accepted, Done, Started
from glmtts.protocol.requests import MAX_SEED, MAX_SPEED, MIN_SPEED, PRIORITIES
from glmtts.protocol.text_encodings import conversion, utf16_of
from glmtts.protocol.texts import NOTHING_TO_SPEAK

from .growing_text import GrowingText
from .retry import with_retries
from .session import MOST_SECONDS, QUICK_TIMEOUT_S, Seconds, Session, session, shared_options, timeout_option
from .ui.humanize import duration
from .ui.output import print_json
from .ui.player import PlayerSink, find_player
from .ui.sinks import RawSink, Sink, WavSink
from .voices import voice_names

#: The daemon's limits for texts in pieces, where it names none.
_TEXT_CHARS = 5_000
_TEXT_TIMEOUT_S = 60.0


def parse_options(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """``K=V`` pairs as the engine's options: V is JSON where it can be (a number, true, a list), else a string."""
    options: dict[str, Any] = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


@click.command()
@click.argument("text")
@click.option("-o", "file", metavar="FILE", help="Write the speech to FILE; `-` is standard output.")
@click.option(
    "--voice", metavar="NAME", shell_complete=voice_names, help="A registered voice; `glmttsctl voices` lists them."
)
@click.option(
    "--prompt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Clone the voice of this recording of 1 to 30 s.",
)
@click.option("--prompt-text", metavar="TEXT", help="What is said in the recording.")
@click.option("--format", "format", type=click.Choice(FORMATS), help="By default that of FILE's name, else wav.")
@click.option("--sample-rate", type=click.IntRange(8_000, 48_000), metavar="HZ")
@click.option("--stream", is_flag=True, help="Write the speech as it is made, in any format.")
@click.option("--play", is_flag=True, help="Play the speech as it is made.")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option(
    "--deadline",
    "deadline_s",
    type=Seconds(min=0, min_open=True, max=MOST_SECONDS),
    metavar="SECONDS",
    help="The daemon gives up if the job is not done by then.",
)
@click.option("--output", metavar="NAME", help="Keep the speech as NAME in the daemon's output folder.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), metavar="N", help="Same text, voice and seed: same audio.")
@click.option(
    "--speed",
    type=click.FloatRange(MIN_SPEED, MAX_SPEED),
    metavar="X",
    help="0.5 to 2: 2 is twice as fast, at the same pitch.",
)
@click.option("--label", metavar="TEXT", help="A caption for the lists of jobs (`glmttsctl jobs`, `queue`).")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="K=V",
    callback=parse_options,
    help="An option of the engine; `glmttsctl info` lists them. May be repeated.",
)
@click.option("--no-wait", is_flag=True, help="Fail at once when the queue is full or the rate limit is reached.")
@timeout_option("Give up after this many seconds, waiting included.")
@shared_options
def say(
    *,
    text: str,
    file: str | None,
    format: AudioFormat | None,
    output: str | None,
    stream: bool,
    play: bool,
    no_wait: bool,
    timeout: float | None,
    **request: Any,
) -> None:
    """Speak TEXT; `-` reads it from standard input.

    With --stream or --play, `-` speaks while standard input still grows: each sentence as soon as it is whole.
    """
    if (request["prompt"] is None) != (request["prompt_text"] is None):
        raise click.UsageError("--prompt and --prompt-text belong together: the recording, and what is said in it.")
    if request["prompt"] and request["voice"]:
        raise click.UsageError("--voice and --prompt exclude each other.")
    run = session()
    target = _choose_target(run, file, output, format, stream=stream, play=play)
    request |= {"format": target.format, "output": output, "options": request["options"] or None}
    request["on_event"] = lambda event: _note(run, event)
    ends = None if timeout is None else time.monotonic() + timeout

    def speak(call: Callable[[float | None], dict[str, Any]]) -> None:
        left = None if ends is None else max(0.0, ends - time.monotonic())
        facts = with_retries(call, timeout=left, wait=not no_wait, note=run.note)
        if run.json:
            print_json(facts)
            return
        run.note(summary(facts))
        if output is not None:
            click.echo(facts["file"])  # the path on the daemon's machine, for a script that reads the file

    words = "" if text == "-" and target.streamed else _read_text(text)
    try:
        with run.client(timeout=None) as client:
            if not target.streamed:
                speak(lambda left: _fetch(client, words, request, target, left))
                return
            with _Sinks(target) as sinks:
                if words:
                    speak(lambda left: _stream(client, words, request, sinks, left))
                    return
                growing = _growing_text(client)
                while growing.wait():
                    speak(lambda left: _stream(client, growing.pieces(), request, sinks, left))
    except BrokenPipeError:
        # The reader of standard output has what it wants, as in "| head -c 1000". Python must not fail again on what
        # is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Target:
    """Where the speech goes.

    ``file`` is ``-`` for standard output, None for no file; ``wrapped`` puts a WAV header before a stream's samples.
    """

    file: str | None
    format: AudioFormat
    wrapped: bool = False
    player: str | None = None
    streamed: bool = False


def _choose_target(
    run: Session, file: str | None, output: str | None, format: AudioFormat | None, *, stream: bool, play: bool
) -> Target:
    """The target of a valid combination of options; a usage error names what to give instead of any other."""
    if output is not None and (file is not None or stream or play):
        raise click.UsageError("--output keeps the speech in the daemon's folder; -o, --stream and --play exclude it.")
    if file is None and output is None and not play:
        if sys.stdout.isatty() or run.json:
            raise click.UsageError("Where should the speech go? Give -o FILE, --play, --output NAME, or a pipe.")
        file = "-"
    if file == "-" and run.json:
        raise click.UsageError("--json and the speech can't both go to standard output; give -o FILE.")
    chosen = _format_of(file if file not in (None, "-") else output, format)
    if not stream and not play:
        return Target(file, chosen or "wav")
    wrapped = chosen == "wav"
    if play and chosen not in (None, "wav", "pcm_s16le"):
        raise click.UsageError("Players take 16-bit samples; use wav or pcm_s16le with --play.")
    samples: AudioFormat = chosen if chosen is not None and not wrapped else "pcm_s16le"
    return Target(file, samples, wrapped=wrapped, player=find_player() if play else None, streamed=True)


def _format_of(name: str | None, asked: AudioFormat | None) -> AudioFormat | None:
    """The format asked for, else that of the file's name; a usage error where the two contradict each other."""
    if not name or name.startswith("/dev/"):
        return asked
    if problem := misnamed(Path(name).name, asked):
        raise click.UsageError(f"{name}: {problem} (--format gives one).")
    return asked or format_of_name(Path(name).name)


def _read_text(text: str) -> str:
    read = b""
    try:
        if text == "-":
            read = sys.stdin.buffer.read()
            text = read.decode(utf16_of(read) or "utf-8").removeprefix("\ufeff")
        text.encode()
    except UnicodeDecodeError as error:
        line = read[max(0, read.rfind(b"\n", 0, error.start)) :].strip().partition(b"\n")[0]
        raise click.UsageError(f"The text is not valid UTF-8. {conversion(read, line, '-')}") from None
    except UnicodeError:
        raise click.UsageError("The text is not valid UTF-8.") from None
    if not text.strip():
        raise click.UsageError(f"text: {NOTHING_TO_SPEAK}.")
    return text.strip()


def _note(run: Session, event: JobEvent) -> None:
    """Remark on a long queue, and on a worker that died during the job."""
    if isinstance(event, Accepted) and isinstance(event.warning, str):
        run.note(event.warning)
    if isinstance(event, Started) and event.attempt > 1:
        run.note(f"The worker died; {event.worker} retries the job (attempt {event.attempt}).")


def _fetch(client: Client, text: str, request: dict[str, Any], target: Target, left: float | None) -> dict[str, Any]:
    speech = client.speak(text, timeout=left, **request)
    if target.file is not None:
        write_speech(target.file, speech.audio)
    return facts_of(speech, target.file or speech.path)


def write_speech(file: str, audio: bytes) -> None:
    """Write a finished speech; ``-`` is standard output."""
    if file == "-":
        sys.stdout.buffer.write(audio)
        sys.stdout.buffer.flush()
    else:
        write_whole(Path(file), audio)


class _Sinks(contextlib.AbstractContextManager["_Sinks"]):
    """Where a stream goes, and the streams of further jobs behind it. Its block ends what the first chunk began."""

    def __init__(self, target: Target) -> None:
        self.file = target.file
        self._sinks: list[Sink] = []
        self._stack = contextlib.ExitStack()
        self._begun = False
        if target.file is not None:
            place = sys.stdout.buffer if target.file == "-" else Path(target.file)
            is_float = target.format == "pcm_f32le"
            self._sinks.append(WavSink(place, is_float=is_float) if target.wrapped else RawSink(place))
        if target.player is not None:
            self._sinks.append(PlayerSink(target.player))

    def write(self, chunk: Chunk) -> None:
        """Take the next samples."""
        for sink in self._sinks:
            if not self._begun:
                self._stack.enter_context(sink).start(chunk.sample_rate, chunk.channels)
            sink.write(chunk.samples)
        self._begun = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, traceback)
        with self._stack:
            for sink in self._sinks if self._begun else []:
                sink.finish()
        return None


def _stream(
    client: Client, text: str | Iterable[str], request: dict[str, Any], sinks: _Sinks, left: float | None
) -> dict[str, Any]:
    ends = math.inf if left is None else time.monotonic() + left
    with client.stream(text, timeout=left, **request) as stream:
        for chunk in stream:
            sinks.write(chunk)
            if time.monotonic() > ends:
                raise Timeout("The speech was not finished in time.", job=stream.job.id)
    return facts_of(stream.done, sinks.file)


def _growing_text(client: Client) -> GrowingText:
    limits = client.info(timeout=QUICK_TIMEOUT_S).limits
    return GrowingText(
        sys.stdin.fileno(),
        longest=int(limits.get("text_chars", _TEXT_CHARS)),
        patience_s=float(limits.get("text_timeout_s", _TEXT_TIMEOUT_S)),
    )


_FACTS = (
    *("job", "format", "sample_rate", "audio_s", "waited_s", "synthesis_s", "first_audio_s", "rtf", "attempts"),
    *("engine", "voice", "sha256"),
)


def facts_of(speech: Speech | Done | None, file: str | None) -> dict[str, Any]:
    """The figures of a finished job, and the file of its audio, as ``--json`` prints them."""
    facts: dict[str, Any] = {} if file is None else {"file": file}
    return facts | {name: getattr(speech, name) for name in _FACTS}


def summary(facts: dict[str, Any]) -> str:
    """One line about a finished job."""
    file = facts.get("file")
    where = "" if file in (None, "-") else f" in {file}"
    retried = f", {facts['attempts']} attempts" if facts["attempts"] > 1 else ""
    return (
        f"{duration(facts['audio_s'])} of speech{where} (rtf {facts['rtf']:.3f}, first audio after "
        f"{duration(facts['first_audio_s'])}, waited {duration(facts['waited_s'])}{retried})"
    )
