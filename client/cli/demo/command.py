"""`glmttsctl demo`: the promise of this program, kept before your eyes: a worker is killed, its client answered."""

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
from ..session import session, shared_options
from ..ui.output import duration, print_json
from ..ui.sinks import WavSink
from .daemon import DemoDaemon, demo_daemon

_CHINESE = "今天天气不错，我们一起去公园散步吧。"
_ENGLISH = "The speech you hear was asked for on a socket, and made by a worker process."

#: Spoken while its worker is killed: long enough to be caught in the middle.
_LONG = "这是一段很长的文字，它正在被朗读的时候，朗读它的进程会被杀死。"

_TRIES = 5


@click.command()
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where the two WAV files go; the current folder unless given.",
)
@shared_options
def demo(folder: Path) -> None:
    """Start a daemon of its own, speak, kill a worker, and see that it is made good."""
    run = session()
    folder.mkdir(parents=True, exist_ok=True)
    story = _Story(err=run.json)
    with demo_daemon() as daemon:
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
    """What is told, step by step, and the figures in it."""

    err: bool
    figures: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def begin(self, title: str) -> None:
        self.step += 1
        self.tell(f"{self.step}. {title}", heading=True)

    def tell(self, text: str, *, heading: bool = False) -> None:
        click.secho(text if heading else f"   {text}", bold=heading, err=self.err)

    def keep(self, **figures: float | str) -> None:
        self.figures |= {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}


def _begin(story: _Story, daemon: DemoDaemon) -> None:
    story.begin("A daemon of its own")
    accepting = daemon.until_accepting()
    story.tell(f"process {daemon.pid} accepts requests {duration(accepting)} after its start")
    pids = daemon.until_ready()
    ready = time.perf_counter() - daemon.started
    named = ", ".join(f"{name} (process {pid})" for name, pid in pids.items())
    story.tell(f"{named} has the model loaded and is READY after {duration(ready)}")
    story.keep(accepting_s=accepting, ready_s=ready)


def _speak(story: _Story, daemon: DemoDaemon, language: str, text: str, path: Path) -> None:
    story.begin(f"A sentence, streamed to {path.name}")
    story.tell(text)
    first_audio = None
    chunks = 0
    with Client(daemon.endpoint, timeout=30.0) as client, WavSink(path, is_float=False) as sink:
        began = time.perf_counter()
        with client.stream(text, format="pcm_s16le") as stream:
            for chunk in stream:
                if first_audio is None:
                    first_audio = time.perf_counter() - began
                    sink.start(chunk.sample_rate, chunk.channels)
                sink.write(chunk.samples)
                chunks += 1
            sink.finish()
        done = stream.done
    if done is None or first_audio is None or done.audio_s < 1.0:
        raise Failure(f"there is no speech in the answer to {text!r}")
    story.tell(
        f"first audio after {first_audio * 1_000:.1f} ms, {duration(done.audio_s)} of speech in {chunks} chunks, "
        f"rtf {done.rtf:.4f}"
    )
    story.keep(
        **{f"{language}_first_audio_s": first_audio, f"{language}_audio_s": done.audio_s, f"{language}_rtf": done.rtf}
    )


def _kill(story: _Story, daemon: DemoDaemon) -> None:
    story.begin("A worker is killed (SIGKILL) in the middle of a job")
    count = daemon.worker_count()
    for attempt in range(_TRIES):
        victim = _Victim(daemon, daemon.until_ready(count))
        text = _LONG * (30 * 2**attempt)
        answer = victim.speak_and_kill(text[:5_000])
        pids, back = victim.until_replaced()
        if answer:
            break
        story.tell("the job was done before the signal came; once more, with more text")
    else:
        raise Failure(f"the job was faster than the signal {_TRIES} times")
    story.tell(f"{victim.name} (process {victim.pid}) was killed {victim.into_job_s * 1_000:.1f} ms into a job")
    story.tell(answer)
    fresh = pids.get(victim.name)
    story.tell(
        f"{victim.name} is READY again as process {fresh}, {duration(back)} after the kill"
        if fresh
        else f"{len(pids)} workers are READY again, {duration(back)} after the kill"
    )
    with Client(daemon.endpoint, timeout=30.0) as client:
        speech = client.speak(_CHINESE)
    story.tell(f"and the next job is done as if nothing had happened: {duration(speech.audio_s)} of speech")
    story.keep(answered_after_kill_s=victim.answered - victim.killed, replaced_after_kill_s=back)


class _Victim:
    """The worker that gets the job, and what its client hears of its end."""

    def __init__(self, daemon: DemoDaemon, pids: dict[str, int]) -> None:
        self._daemon = daemon
        self._pids = pids
        self._watch = ThreadPoolExecutor(max_workers=1)
        self._replaced: Future[tuple[dict[str, int], float]] | None = None
        self._started = 0.0
        self.name = ""
        self.pid = 0
        self.killed = 0.0
        self.answered = 0.0
        self._second = ""

    @property
    def into_job_s(self) -> float:
        return self.killed - self._started

    def speak_and_kill(self, text: str) -> str:
        """Have ``text`` spoken, kill its worker, and say what the client was told; "" when the job had ended before."""
        with Client(self._daemon.endpoint, timeout=60.0) as client:
            try:
                speech = client.speak(text, on_event=self._heard)
            except RequestFailed as error:
                if error.code != "worker_crashed" or not self.killed:
                    raise
                self.answered = time.perf_counter()
                after_ms = (self.answered - self.killed) * 1_000
                return f"its client was told so {after_ms:.1f} ms later: {error.message} ({error.code})"
        if speech.attempts < 2:
            return ""
        if not self.answered:
            raise Failure("the job was begun again, but its client was not told")
        after_ms = (self.answered - self.killed) * 1_000
        whole = time.perf_counter() - self.killed
        return (
            f"its client was told {after_ms:.1f} ms later that {self._second} takes the job over "
            f"(attempt {speech.attempts}),\n   and had all {duration(speech.audio_s)} of the speech "
            f"{duration(whole)} after the kill"
        )

    def _heard(self, event: JobEvent) -> None:
        if not isinstance(event, Started):
            return
        if event.attempt > 1:
            self.answered = self.answered or time.perf_counter()
            self._second = event.worker
            return
        self._started = time.perf_counter()
        self.name = event.worker
        if event.worker not in self._pids:
            raise Failure(f"the job was given to {event.worker}, which is not among the workers that were ready")
        self.pid = self._pids[event.worker]
        # In the middle of the job, not at its first instruction.
        time.sleep(0.02)
        self.killed = time.perf_counter()
        os.kill(self.pid, signal.SIGKILL)
        # Beside the job, which goes on elsewhere and would hide the moment.
        self._replaced = self._watch.submit(self._wait_for_another)

    def _wait_for_another(self) -> tuple[dict[str, int], float]:
        pids = self._daemon.until_ready(len(self._pids), without=self.pid)
        return pids, time.perf_counter() - self.killed

    def until_replaced(self) -> tuple[dict[str, int], float]:
        """Wait until as many workers are ready as before: their pids by name, and the seconds since the kill."""
        if self._replaced is None:
            raise Failure("the job ended without having been started")
        with self._watch:
            return self._replaced.result()


def _end(story: _Story, daemon: DemoDaemon) -> None:
    story.begin("The end")
    took = daemon.stop()
    left = daemon.processes()
    if left:
        raise Failure(f"processes {', '.join(map(str, left))} are still there after the daemon has ended")
    story.tell(f"the daemon ended {duration(took)} after it was asked to; no process is left")
    story.keep(stop_s=took)
