"""`glmttsctl say`: one text becomes speech in a file, in a pipe, in the daemon's output folder or in the air."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from glmtts.client import Client, JobEvent, Speech, Timeout
from glmtts.protocol.audio_formats import FORMAT_OF_SUFFIX, FORMATS, STREAM_FORMATS, AudioFormat
from glmtts.protocol.events import Accepted, Done, Started
from glmtts.protocol.requests import MAX_SEED, PRIORITIES

from .retry import with_retries
from .session import Session, session, shared_options, timeout_option
from .ui.files import write_atomically
from .ui.output import duration, print_json
from .ui.player import find_player
from .ui.sinks import PlayerSink, RawSink, Sink, WavSink


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
@click.option("--voice", metavar="NAME", help="A registered voice; `glmttsctl voices` lists them.")
@click.option(
    "--prompt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Speak like this recording of 1 to 30 s.",
)
@click.option("--prompt-text", metavar="TEXT", help="What is said in the recording.")
@click.option("--format", "format", type=click.Choice(FORMATS), help="By default what FILE's name says, else wav.")
@click.option("--sample-rate", type=click.IntRange(8_000, 48_000), metavar="HZ")
@click.option("--stream", is_flag=True, help="Write the samples while they are made: to a WAV file, or raw.")
@click.option("--play", is_flag=True, help="Play the speech while it is made.")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For the daemon: be done by then or give up.",
)
@click.option("--output", metavar="NAME", help="Write NAME in the daemon's output folder instead of sending it here.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), metavar="N", help="Same text, voice and seed: same audio.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="K=V",
    callback=parse_options,
    help="For the engine; `glmttsctl info` lists them. May be repeated.",
)
@click.option("--no-wait", is_flag=True, help="Fail at once when the daemon says to come back later.")
@timeout_option("Give up after this many seconds, waiting included.")
@shared_options
def say(
    *,
    text: str,
    file: str | None,
    voice: str | None,
    prompt: Path | None,
    prompt_text: str | None,
    format: AudioFormat | None,
    sample_rate: int | None,
    stream: bool,
    play: bool,
    priority: str | None,
    deadline: float | None,
    output: str | None,
    seed: int | None,
    options: dict[str, Any],
    no_wait: bool,
    timeout: float | None,
) -> None:
    """Speak TEXT; `-` reads it from standard input."""
    if (prompt is None) != (prompt_text is None):
        raise click.UsageError("--prompt and --prompt-text belong together: the recording, and what is said in it.")
    if prompt and voice:
        raise click.UsageError("--voice and --prompt are two answers to one question; give one of them.")
    run = session()
    target = _choose_target(run, file, output, format, stream=stream, play=play)
    request: dict[str, Any] = {
        "voice": voice,
        "prompt": prompt,
        "prompt_text": prompt_text,
        "format": target.format,
        "sample_rate": sample_rate,
        "output": output,
        "priority": priority,
        "deadline_s": deadline,
        "seed": seed,
        "options": options or None,
        "on_event": lambda event: _tell(run, event),
    }
    Speaking(run, _read_text(text), request, target, timeout=timeout, wait=not no_wait).speak()


@dataclass(frozen=True)
class Target:
    """Where the speech goes: ``file`` is None for none, ``-`` for standard output."""

    file: str | None
    format: AudioFormat
    #: The format of the file that is made of a stream: WAV around the samples, or the samples alone.
    wrapped: bool = False
    player: str | None = None
    streamed: bool = False


def _choose_target(
    run: Session, file: str | None, output: str | None, format: AudioFormat | None, *, stream: bool, play: bool
) -> Target:
    """Every combination of the output options, or a usage error that says what to write instead."""
    if output is not None and (file is not None or stream or play):
        raise click.UsageError(
            "--output keeps the speech in the daemon's folder: not together with -o, --stream or --play."
        )
    if file is None and output is None and not play:
        if sys.stdout.isatty() or run.json:
            raise click.UsageError("Where should the speech go? Give -o FILE, --play or --output NAME, or pipe it on.")
        file = "-"
    if file == "-" and run.json:
        raise click.UsageError("--json and the speech can't both go to standard output; give -o FILE.")
    chosen = format or _format_of_name(file if file not in (None, "-") else output)
    if not stream and not play:
        return Target(file, chosen or "wav")
    # A stream is samples; to a file called .wav, or where WAV is asked for by name, they get a header.
    wrapped = chosen == "wav"
    if chosen is not None and not wrapped and chosen not in STREAM_FORMATS:
        raise click.UsageError(
            f"{chosen} can't be streamed or played while it is made; use wav, pcm_s16le or pcm_f32le."
        )
    if play and chosen == "pcm_f32le":
        raise click.UsageError("Players are fed with 16-bit samples; use wav or pcm_s16le with --play.")
    samples: AudioFormat = chosen if chosen is not None and not wrapped else "pcm_s16le"
    return Target(file, samples, wrapped=wrapped, player=find_player() if play else None, streamed=True)


def _format_of_name(name: str | None) -> AudioFormat | None:
    suffix = Path(name or "").suffix.lower()
    if not suffix or (name and name.startswith("/dev/")):
        return None
    if suffix not in FORMAT_OF_SUFFIX:
        known = " ".join(FORMAT_OF_SUFFIX)
        raise click.UsageError(
            f"{name}: no format is called {suffix} here ({known}); --format says which one to write."
        )
    return FORMAT_OF_SUFFIX[suffix]


def _read_text(text: str) -> str:
    try:
        if text == "-":
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        text.encode()
    except UnicodeError:
        raise click.UsageError("The text is not valid UTF-8.") from None
    if not text.strip():
        raise click.UsageError("There is no text to speak.")
    return text.strip()


def _tell(run: Session, event: JobEvent) -> None:
    """What a person who waits should know: a long queue, a worker that died under the job."""
    if isinstance(event, Accepted) and isinstance(event.warning, str):
        run.note(event.warning)
    if isinstance(event, Started) and event.attempt > 1:
        run.note(f"The worker died; {event.worker} speaks the text instead (attempt {event.attempt}).")


class Speaking:
    """One text on its way to its target."""

    def __init__(
        self, run: Session, text: str, request: dict[str, Any], target: Target, *, timeout: float | None, wait: bool
    ) -> None:
        self._run = run
        self._text = text
        self._request = request
        self._target = target
        self._timeout = timeout
        self._wait = wait

    def speak(self) -> None:
        """Speak, deliver, and say how it went."""
        once = self._stream if self._target.streamed else self._fetch
        with self._run.client(timeout=None) as client:
            facts = with_retries(
                lambda left: once(client, left), timeout=self._timeout, wait=self._wait, note=self._run.note
            )
        if self._run.json:
            print_json(facts)
        else:
            self._run.note(summary(facts))
            if self._request["output"] is not None:
                click.echo(facts["file"])  # the path on the daemon's machine, for whoever goes on with the file

    def _fetch(self, client: Client, left: float | None) -> dict[str, Any]:
        speech = client.speak(self._text, timeout=left, **self._request)
        if self._target.file == "-":
            sys.stdout.buffer.write(speech.audio)
            sys.stdout.buffer.flush()
        elif self._target.file is not None:
            write_atomically(Path(self._target.file), speech.audio)
        return facts_of(speech, self._target.file or speech.path)

    def _stream(self, client: Client, left: float | None) -> dict[str, Any]:
        ends = math.inf if left is None else time.monotonic() + left
        sinks = self._sinks()
        started = False
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(client.stream(self._text, timeout=left, **self._request))
            for chunk in stream:
                if not started:
                    for sink in sinks:
                        stack.enter_context(sink).start(chunk.sample_rate, chunk.channels)
                    started = True
                for sink in sinks:
                    sink.write(chunk.samples)
                if time.monotonic() > ends:
                    raise Timeout("The speech was not finished in time.", job=stream.job.id)
            for sink in sinks:
                sink.finish()
        return facts_of(stream.done, self._target.file)

    def _sinks(self) -> list[Sink]:
        target = self._target
        sinks: list[Sink] = []
        if target.file is not None:
            place = sys.stdout.buffer if target.file == "-" else Path(target.file)
            sinks.append(WavSink(place, is_float=target.format == "pcm_f32le") if target.wrapped else RawSink(place))
        if target.player is not None:
            sinks.append(PlayerSink(target.player))
        return sinks


def facts_of(speech: Speech | Done | None, file: str | None) -> dict[str, Any]:
    """How a job went, and where its audio is."""
    facts: dict[str, Any] = {} if file is None else {"file": file}
    facts |= {name: getattr(speech, name) for name in _FACTS}
    return facts


_FACTS = (
    "job",
    "format",
    "sample_rate",
    "audio_s",
    "waited_s",
    "synthesis_s",
    "first_audio_s",
    "rtf",
    "attempts",
    "engine",
    "voice",
    "sha256",
)


def summary(facts: dict[str, Any]) -> str:
    """One line about a finished job."""
    file = facts.get("file")
    where = "" if file in (None, "-") else f" in {file}"
    retried = f", {facts['attempts']} attempts" if facts["attempts"] > 1 else ""
    return (
        f"{duration(facts['audio_s'])} of speech{where} (rtf {facts['rtf']:.3f}, first audio after "
        f"{duration(facts['first_audio_s'])}, waited {duration(facts['waited_s'])}{retried})"
    )
