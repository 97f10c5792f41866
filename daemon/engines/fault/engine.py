"""An engine for tests and operators: makes tones, and on request fails in every way that a real engine might.

The faults are real: ``segv`` is a segmentation fault, ``hang_gil`` holds the interpreter lock in C.
"""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from glmtts.protocol.events import Voice

from ..base import (
    BatchEngine,
    Broken,
    Ended,
    EngineError,
    Event,
    Handle,
    MemoryFigures,
    Piece,
    SharedStepError,
    Spoken,
    Utterance,
    texts_of,
)
from ..options import FaultOptions
from ..sentences import Splitter
from . import faults
from .gpu import Block, CudaError, FaultGpu, NoGpuError, OutOfMemoryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SECONDS_PER_CHARACTER = 0.06
_MIN_SECONDS = 0.2
#: The longest piece of audio, in seconds.
_PIECE_S = 0.5
#: The time of one unit of progress.
_UNIT_S = 0.02
_MIB = 1 << 20
#: Faults that need a GPU, or a fake CUDA driver.
_ON_GPU = frozenset({"leak_vram", "leak_outside", "cache_vram", "use_vram", "oom_vram", "illegal_access"})
#: The expected steps in the beats of ``beat_still`` and ``runaway``.
_EXPECTED_STEPS = 10

#: The lowest pitch of each voice, in Hz; a recording's voice has an octave of its own.
_VOICES = {"tone": 220.0, "tone-high": 440.0, "tone-low": 110.0}
_REFERENCE_HZ = 330.0

#: What a job does in a step: audio, or a wait for a time on its clock.
_Step = Piece | float


@dataclass(eq=False)
class _Job(Handle):
    """A job with its clock, which stands still while it is suspended."""

    steps: Iterator[_Step] = field(init=False)
    #: The end of all the work so far, on the clock: waits do not add up their delays.
    due: float = 0.0
    #: What the clock lacks: the time before the job began, and that of its suspensions.
    lost_s: float = field(default_factory=time.monotonic)
    suspended_at: float = 0.0
    #: Whether ``done`` counts the time.
    counts: bool = True
    #: Whether its samples are not numbers from now on.
    broken: bool = False
    #: Its memory on the GPU, for its own time.
    in_use: list[Block] = field(default_factory=list)

    @property
    def options(self) -> FaultOptions:
        options: FaultOptions = self.utterance.options
        return options

    def wait(self, seconds: float) -> Iterator[float]:
        """Be busy for ``seconds``."""
        self.due += seconds
        yield self.due


class FaultEngine(BatchEngine):
    """Makes a tone whose pitch and phase depend on voice, reference, seed and text.

    Jobs are side by side, each at its own pace, and sound alike at any number of slots. ``work_s`` of those that run is
    the time, in equal parts.
    """

    name = "fault"
    version = "1"
    sample_rates = (24_000, 32_000)
    options = FaultOptions
    clones_voices = True
    repeats = True
    _share: ClassVar[float] = 0.0

    def __init__(self, settings: dict[str, Any], *, send_raw: Callable[[bytes], None]) -> None:
        self.slots = int(settings.get("slots", 1))
        self._send_raw = send_raw
        self._running: list[_Job] = []
        #: All jobs with memory on the GPU.
        self._using: set[_Job] = set()
        #: When the work was last shared out.
        self._shared_at = 0.0
        self._leaked_ram: list[bytes] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._gpu: FaultGpu | None = None
        if vram_mib := int(settings.get("vram_mib", 0)):
            try:
                self._on_gpu().take(vram_mib * _MIB)
            except NoGpuError as error:
                raise RuntimeError(f"[engine.fault] vram_mib = {vram_mib} needs a GPU: {error}") from None
        faults.misbehave_at_start(settings.get("start", "normal"), float(settings.get("start_s", 0.0)))

    @classmethod
    def limit_memory(cls, share: float) -> None:
        cls._share = share

    @property
    def voices(self) -> list[Voice]:
        return [Voice(name=name, language="", description=f"a tone above {hz:g} Hz") for name, hz in _VOICES.items()]

    def begin(self, utterance: Utterance) -> Handle:
        self._share_out()
        job = _Job(utterance)
        job.steps = self._speak(job)
        self._running.append(job)
        return job

    def advance(self) -> list[Event]:
        now = self._share_out()
        events: list[Event] = []
        for job in list(self._running):
            clock = now - job.lost_s
            if job.counts:
                job.done = int(min(clock, job.due) / _UNIT_S)
            if clock < job.due:
                continue
            self.record("speak", (job.utterance.job,))
            try:
                step = next(job.steps, None)
            except SharedStepError:
                raise
            except Exception as error:
                self._leave(job)
                events.append(Broken(job, error))
                continue
            if step is None:
                self._leave(job)
                events.append(Ended(job))
            elif isinstance(step, Piece):
                events.append(Spoken(job, step))
        return events

    def idle_s(self) -> float | None:
        if not self._running:
            return None
        return max(0.0, min(job.due + job.lost_s for job in self._running) - time.monotonic())

    def suspend(self, handle: Handle) -> None:
        job = cast("_Job", handle)
        job.suspended_at = self._share_out()
        self._running.remove(job)

    def resume(self, handle: Handle) -> None:
        job = cast("_Job", handle)
        job.lost_s += self._share_out() - job.suspended_at
        self._running.append(job)

    def cancel(self, handle: Handle) -> None:
        job = cast("_Job", handle)
        self._leave(job)
        cast("Any", job.steps).close()

    @property
    def settled(self) -> bool:
        return not self._using

    def trim(self) -> None:
        if self._gpu:
            self._gpu.trim()

    def memory(self) -> MemoryFigures:
        if self._gpu is None:
            return MemoryFigures()
        return MemoryFigures(torch_allocated=self._gpu.allocated, torch_reserved=self._gpu.reserved)

    def _share_out(self) -> float:
        """Charge the jobs that run for the time since the last call, before any begins or stops. Returns the time."""
        now = time.monotonic()
        for job in self._running:
            job.work_s += (now - self._shared_at) / len(self._running)
        self._shared_at = now
        return now

    def _leave(self, job: _Job) -> None:
        if job in self._running:
            self._share_out()
            self._running.remove(job)

    # --- a job

    def _speak(self, job: _Job) -> Iterator[_Step]:
        try:
            yield from self._speak_text(job) if job.utterance.more is None else self._speak_sentences(job)
        finally:
            self._using.discard(job)
            while job.in_use and self._gpu:
                self._gpu.release(job.in_use.pop())

    def _speak_text(self, job: _Job) -> Iterator[_Step]:
        options, utterance = job.options, job.utterance
        goes_wrong = options.fault != "audio"
        # A fault after N segments happens at the start of one more.
        segments = max(options.segments, options.after_segments + 1) if goes_wrong else options.segments
        seconds = options.seconds
        if seconds is None or options.fault == "sleep":
            seconds = _length(utterance.text)
        rate = utterance.sample_rate
        pitch = _pitch(utterance)
        total = round(seconds * rate)
        job.expected = max(1, round(options.rtf * seconds / _UNIT_S))
        for segment in range(segments):
            if goes_wrong and segment == options.after_segments:
                yield from self._go_wrong(job)
            position, end = total * segment // segments, total * (segment + 1) // segments
            yield from _tones(job, pitch, range(position, end), segment, segments)

    def _speak_sentences(self, job: _Job) -> Iterator[_Step]:
        """Speak a text that comes in pieces: each sentence is a segment, and sounds as it would alone."""
        options, utterance = job.options, job.utterance
        number, splitter = 0, Splitter()
        for text in texts_of(utterance):
            if isinstance(text, Piece):
                yield text
                continue
            sentences = splitter.add(text)
            known = number + len(sentences)
            for sentence in sentences:
                if options.fault != "audio" and number == options.after_segments:
                    yield from self._go_wrong(job)
                seconds = _length(sentence.text) if options.seconds is None else options.seconds
                if end := round(seconds * utterance.sample_rate):
                    yield from _tones(job, _pitch(replace(utterance, text=sentence.text)), range(end), number, known)
                number += 1

    # --- faults

    def _go_wrong(self, job: _Job) -> Iterator[_Step]:
        options = job.options
        if options.after_segments:
            # ZeroMQ sends in a thread of its own: let it send the earlier segments before the process dies.
            yield from job.wait(_UNIT_S)
        jobs = [one.utterance.job for one in self._running] if options.shared else [job.utterance.job]
        self.record(*(("together" if options.shared else "speak", jobs) if options.recorded else ("", ())))
        try:
            yield from self._fault(job)
        except Exception as error:
            if options.shared:
                raise SharedStepError(jobs, error) from error
            raise

    def _fault(self, job: _Job) -> Iterator[_Step]:
        options = job.options
        if options.fault in _ON_GPU:
            self._go_wrong_on_gpu(job)
            return
        match options.fault:
            case "sleep":
                asleep_s = 5.0 if options.seconds is None else options.seconds
                job.expected = (job.expected or 0) + round(asleep_s / _UNIT_S)
                yield from job.wait(asleep_s)
            case "leak_ram":
                self._leaked_ram.append(b"\x5a" * (options.mib << 20))
            case "raise":
                raise RuntimeError("the fault that was asked for")
            case "quote" | "quote_fatal" as how:
                faults.quote(job.utterance.text, fatal=how == "quote_fatal")
            case "exit":
                os._exit(3)
            case "segv" | "abort" | "kill" as how:
                faults.die(how)
            case "hang":
                while True:
                    time.sleep(3_600)
            case "hang_gil":
                faults.hang_in_c()
            case "beat_still":
                job.counts, job.done, job.expected = False, 1, _EXPECTED_STEPS
                yield from job.wait(math.inf)
            case "runaway":
                job.counts, job.done, job.expected = False, 1, _EXPECTED_STEPS
                while True:
                    yield from job.wait(_UNIT_S)
                    job.done += _EXPECTED_STEPS
            case "fork_child":
                self._children += faults.start_children()
            case "oom":
                raise MemoryError("the fault that was asked for: no memory left")
            case "nan":
                job.broken = True
            case "garbage":
                for nonsense in (b"\xc1\xff\x00nonsense", b"\x81\xa4type\xa8nonsense", b""):
                    self._send_raw(nonsense)
            case "flood_stdout":
                job.counts, job.expected = False, faults.FLOOD_LINES
                for job.done in faults.flood():
                    yield job.due
                job.counts = True

    def _on_gpu(self) -> FaultGpu:
        if self._gpu is None:
            self._gpu = FaultGpu(self._share)
        return self._gpu

    def _go_wrong_on_gpu(self, job: _Job) -> None:
        options = job.options
        try:
            gpu = self._on_gpu()
            match options.fault:
                case "leak_vram" if options.mib:
                    gpu.take(options.mib * _MIB)
                case "leak_outside" if options.mib:
                    gpu.take_outside(options.mib * _MIB)
                case "cache_vram" if options.mib:
                    gpu.grow_cache(options.mib * _MIB)
                case "use_vram" if options.mib:
                    job.in_use.append(gpu.take(options.mib * _MIB))
                    self._using.add(job)
                case "oom_vram":
                    gpu.exhaust()
                case "illegal_access":
                    gpu.break_context()
        except NoGpuError:
            raise EngineError(
                "bad_request", f"options.fault: {options.fault} needs a GPU, and this worker sees none"
            ) from None
        except OutOfMemoryError as error:
            raise EngineError("out_of_memory", str(error), fatal=True) from error
        except CudaError as error:
            if not error.poisons:
                raise
            raise EngineError("cuda_context", str(error), fatal=True) from error


def _tones(job: _Job, pitch: tuple[float, float], span: range, segment: int, segments: int) -> Iterator[_Step]:
    """The pieces of a segment, which has these samples of the job's tone, each after its time."""
    rate, position, end = job.utterance.sample_rate, span.start, span.stop
    while True:
        count = min(round(_PIECE_S * rate), end - position)
        if job.options.rtf:
            yield from job.wait(job.options.rtf * count / rate)
        samples = np.full(count, np.nan, np.float32) if job.broken else _tone(*pitch, position, count, rate)
        position += count
        yield Piece(samples, segment, segments, position == end)
        if position == end:
            return


def _length(text: str) -> float:
    """The seconds of a text's tone."""
    return max(_MIN_SECONDS, len(text) * _SECONDS_PER_CHARACTER)


def _pitch(utterance: Utterance) -> tuple[float, float]:
    """Frequency within the voice's octave, and phase, from a hash of text, voice and seed."""
    reference = utterance.reference
    who = reference.digest + reference.text if reference else utterance.voice or ""
    what = f"{who}\0{utterance.seed}\0{utterance.text}".encode(errors="surrogatepass")
    digest = hashlib.blake2b(what, digest_size=8).digest()
    lowest = _REFERENCE_HZ if reference else _VOICES.get(utterance.voice or "tone", _VOICES["tone"])
    return (
        lowest * (1 + int.from_bytes(digest[:4], "little") / 2**32),
        2 * np.pi * int.from_bytes(digest[4:], "little") / 2**32,
    )


@lru_cache(maxsize=16)
def _tone(hz: float, phase: float, position: int, count: int, rate: int) -> NDArray[np.float32]:
    # In 64 bits, as with 32 the pitch would waver after ten minutes.
    angle = np.arange(position, position + count) * (2 * np.pi * hz / rate) + phase
    samples: NDArray[np.float32] = (0.3 * np.sin(angle)).astype(np.float32)
    samples.flags.writeable = False
    return samples
