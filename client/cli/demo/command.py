"""`glmttsctl demo`: a daemon of its own speaks, and survives the kill of a worker in the middle of a job."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from glmtts.client import Client, JobEvent, RequestFailed
from glmtts.protocol.events import Started

from ..failures import Failure
from ..private_daemon import PrivateDaemon, private_daemon
from ..session import session, shared_options
from ..ui.humanize import duration
from ..ui.output import print_json
from ..ui.sinks import WavSink

_CHINESE = "今天天气不错，我们一起去公园散步吧。"
_ENGLISH = "The speech you hear was requested on a socket, and made by a worker process."

#: Spoken while its worker is killed: long enough to be in the middle of it.
_LONG = "这是一段很长的文字，它正在被朗读的时候，朗读它的进程会被杀死。"

_TRIES = 5


@click.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The folder for the two WAV files.  [the current one]",
)
@shared_options
def demo(folder: Path) -> None:
    """See a worker die in mid-job, and the job survive.

    The demonstration starts a daemon of its own, and leaves only two WAV files.
    """
    run = session()
    folder.mkdir(parents=True, exist_ok=True)
    story = _Story(err=run.json)
    with private_daemon("demo") as daemon:
        _begin(story, daemon)
        _speak(story, daemon, "zh", _CHINESE, folder / "demo-zh.wav")
        _speak(story, daemon, "en", _ENGLISH, folder / "demo-en.wav")
        _kill(story, daemon)
        _end(story, daemon)
    if daemon.folder.exists():
        raise Failure(f"{daemon.folder} could not be removed")
    story.tell(f"Listen to {folder / 'demo-zh.wav'} and {folder / 'demo-en.wav'}.", heading=True)
    if run.json:
        print_json(story.figures)


@dataclass
class _Story:
    """The steps of the demonstration as printed, and their figures for ``--json``."""

    err: bool
    figures: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def begin(self, title: str) -> None:
        self.step += 1
        self.tell(f"{self.step}. {title}", heading=True)

    def tell(self, text: str, *, heading: bool = False) -> None:
        click.secho(text if heading else f"   {text}", bold=heading, err=self.err)

    def keep(self, **figures: float) -> None:
        self.figures |= {key: round(value, 4) for key, value in figures.items()}


def _begin(story: _Story, daemon: PrivateDaemon) -> None:
    story.begin("A separate daemon")
    accepting = daemon.until_accepting()
    story.tell(f"process {daemon.pid} accepts requests {duration(accepting)} after its start")
    pids = daemon.until_ready()
    ready = time.perf_counter() - daemon.started
    named = ", ".join(f"{name} (process {pid})" for name, pid in pids.items())
    story.tell(f"worker {named} has loaded its model and is ready after {duration(ready)}")
    story.keep(accepting_s=accepting, ready_s=ready)


def _speak(story: _Story, daemon: PrivateDaemon, language: str, text: str, path: Path) -> None:
    story.begin(f"A sentence, streamed to {path.name}")
    story.tell(text)
    first_audio, chunks = 0.0, 0
    with Client(daemon.endpoint, timeout=30.0) as client, WavSink(path, is_float=False) as sink:
        began = time.perf_counter()
        with client.stream(text, format="pcm_s16le") as stream:
            for chunk in stream:
                if chunk.seq == 0:
                    first_audio = time.perf_counter() - began
                    sink.start(chunk.sample_rate, chunk.channels)
                sink.write(chunk.samples)
                chunks += 1
            sink.finish()
        done = stream.done
    if done is None or done.audio_s < 1.0:
        raise Failure(f"there is no speech in the answer to {text!r}")
    story.tell(
        f"first audio after {duration(first_audio)}, {duration(done.audio_s)} of speech in {chunks} chunks, "
        f"rtf {done.rtf:.4f}"
    )
    figures = {"first_audio_s": first_audio, "audio_s": done.audio_s, "rtf": done.rtf}
    story.keep(**{f"{language}_{name}": value for name, value in figures.items()})


def _kill(story: _Story, daemon: PrivateDaemon) -> None:
    story.begin("A worker is killed (SIGKILL) in the middle of a job")
    count = daemon.worker_count()
    for attempt in range(_TRIES):
        kill = _Kill(daemon, daemon.until_ready(count))
        answer = kill.during((_LONG * (30 * 2**attempt))[:5_000])
        pids, back = kill.until_replaced()
        if answer:
            break
        story.tell("the job was done before the signal arrived; another try, with more text")
    else:
        raise Failure(f"the job was done before the signal arrived, {_TRIES} times")
    story.tell(f"{kill.worker} (process {kill.pid}) was killed {duration(kill.at - kill.started)} into the job")
    story.tell(answer)
    ready = f"{len(pids)} workers are" if kill.worker not in pids else f"{kill.worker} (process {pids[kill.worker]}) is"
    story.tell(f"{ready} ready again {duration(back)} after the kill")
    with Client(daemon.endpoint, timeout=30.0) as client:
        speech = client.speak(_CHINESE)
    story.tell(f"the next job is served as usual: {duration(speech.audio_s)} of speech")
    story.keep(answered_after_kill_s=kill.answered - kill.at, replaced_after_kill_s=back)


class _Kill:
    """The kill of the worker that gets a job: when it happened, and when the client heard of it."""

    def __init__(self, daemon: PrivateDaemon, pids: dict[str, int]) -> None:
        self._daemon = daemon
        self._pids = pids
        self._watch = ThreadPoolExecutor(max_workers=1)
        self._replaced: Future[tuple[dict[str, int], float]] | None = None
        self._second = ""
        self.started = 0.0
        self.worker = ""
        self.pid = 0
        self.at = 0.0
        self.answered = 0.0

    def during(self, text: str) -> str:
        """Speak ``text`` and kill its worker. Returns the client's view of it; "" if the job was done before."""
        with Client(self._daemon.endpoint, timeout=60.0) as client:
            try:
                speech = client.speak(text, on_event=self._on_event)
            except RequestFailed as error:
                if error.code != "worker_crashed" or not self.at:
                    raise
                self.answered = time.perf_counter()
                after = duration(self.answered - self.at)
                return f"its client got the error {after} later: {error.message} ({error.code})"
        if speech.attempts < 2:
            return ""
        if not self.answered:
            raise Failure("the job was retried, but its client was not told")
        return (
            f"{duration(self.answered - self.at)} later its client learned that {self._second} retries the job "
            f"(attempt {speech.attempts}),\n   and it had all {duration(speech.audio_s)} of the speech "
            f"{duration(time.perf_counter() - self.at)} after the kill"
        )

    def _on_event(self, event: JobEvent) -> None:
        if not isinstance(event, Started):
            return
        if event.attempt > 1:
            self.answered = self.answered or time.perf_counter()
            self._second = event.worker
            return
        self.started = time.perf_counter()
        self.worker = event.worker
        if event.worker not in self._pids:
            raise Failure(f"the job was given to {event.worker}, which is not among the workers that were ready")
        self.pid = self._pids[event.worker]
        # In the middle of the job, not at its first instruction.
        time.sleep(0.02)
        self.at = time.perf_counter()
        os.kill(self.pid, signal.SIGKILL)
        # In a thread: the job continues on another worker, and waiting here would delay it.
        self._replaced = self._watch.submit(self._wait_for_another)

    def _wait_for_another(self) -> tuple[dict[str, int], float]:
        pids = self._daemon.until_ready(len(self._pids), without=self.pid)
        return pids, time.perf_counter() - self.at

    def until_replaced(self) -> tuple[dict[str, int], float]:
        """Wait until as many workers are ready as before. Returns their pids and the seconds since the kill."""
        if self._replaced is None:
            raise Failure("the job ended without a start")
        with self._watch:
            return self._replaced.result()


def _end(story: _Story, daemon: PrivateDaemon) -> None:
    story.begin("The end")
    took = daemon.stop()
    if left := daemon.processes():
        raise Failure(f"processes {', '.join(map(str, left))} are left after the end of the daemon")
    story.tell(f"the daemon ended {duration(took)} after the request to stop; no process is left")
    story.keep(stop_s=took)
