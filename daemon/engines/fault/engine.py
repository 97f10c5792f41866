"""An engine for tests and operators: makes a tone, and on request fails in every way that a real engine might.

The faults are real: ``segv`` is a segmentation fault, ``hang_gil`` holds the interpreter lock in C.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from glmtts.protocol.events import Voice

from ..base import Engine, EngineError, MemoryFigures, Piece, Utterance, texts_of
from ..options import FaultOptions
from ..sentences import Splitter
from .gpu import Block, CudaError, FaultGpu, NoGpuError, OutOfMemoryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SECONDS_PER_CHARACTER = 0.06
_MIN_SECONDS = 0.2
#: The longest piece of audio, in seconds.
_PIECE_S = 0.5
_NAP_S = 0.02
_FLOOD_LINES = 200_000
_FLOOD_BYTES = 4 << 20
_MIB = 1 << 20
#: Faults that need a GPU, or a fake CUDA driver.
_ON_GPU = frozenset({"leak_vram", "leak_outside", "cache_vram", "use_vram", "oom_vram", "illegal_access"})
#: The expected steps in the beats of ``beat_still`` and ``runaway``.
_EXPECTED_STEPS = 10

#: The lowest pitch of each voice, in Hz; a recording's voice has an octave of its own.
_VOICES = {"tone": 220.0, "tone-high": 440.0, "tone-low": 110.0}
_REFERENCE_HZ = 330.0


class FaultEngine(Engine):
    """Makes a tone whose pitch and phase depend on voice, reference, seed and text."""

    name = "fault"
    version = "1"
    sample_rates = (24_000, 32_000)
    options = FaultOptions
    clones_voices = True
    repeats = True
    _share: ClassVar[float] = 0.0

    def __init__(self, settings: dict[str, Any], *, send_raw: Callable[[bytes], None]) -> None:
        self._send_raw = send_raw
        self._leaked_ram: list[bytes] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._gpu: FaultGpu | None = None
        if vram_mib := int(settings.get("vram_mib", 0)):
            try:
                self._on_gpu().take(vram_mib * _MIB)
            except NoGpuError as error:
                raise RuntimeError(f"[engine.fault] vram_mib = {vram_mib} needs a GPU: {error}") from None
        _misbehave_at_start(settings.get("start", "normal"), float(settings.get("start_s", 0.0)))

    @classmethod
    def limit_memory(cls, share: float) -> None:
        cls._share = share

    @property
    def voices(self) -> list[Voice]:
        return [Voice(name=name, language="", description=f"a tone above {hz:g} Hz") for name, hz in _VOICES.items()]

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        options: FaultOptions = utterance.options
        if utterance.more is not None:
            yield from self._synthesize_sentences(utterance)
            return
        goes_wrong = options.fault != "audio"
        # A fault after N segments happens at the start of one more.
        segments = max(options.segments, options.after_segments + 1) if goes_wrong else options.segments
        seconds = options.seconds
        if seconds is None or options.fault == "sleep":
            seconds = max(_MIN_SECONDS, len(utterance.text) * _SECONDS_PER_CHARACTER)
        rate = utterance.sample_rate
        hz, phase = _pitch(utterance)
        total = round(seconds * rate)
        piece = round(_PIECE_S * rate)
        # The job's own, as another may run while it is suspended.
        in_use: list[Block] = []
        try:
            for segment in range(segments):
                if goes_wrong and segment == options.after_segments:
                    self._go_wrong(utterance, in_use)
                position = total * segment // segments
                end = total * (segment + 1) // segments
                while True:
                    count = min(piece, end - position)
                    _nap(utterance, options.rtf * count / rate)
                    if utterance.cancelled():
                        return
                    samples = _tone(hz, phase, position, count, rate)
                    position += count
                    yield Piece(samples, segment, segments, position == end)
                    if position == end:
                        break
        finally:
            while in_use and self._gpu:
                self._gpu.release(in_use.pop())

    def _synthesize_sentences(self, utterance: Utterance) -> Iterator[Piece]:
        """Speak a text that comes in pieces: each sentence is a segment, and sounds as it would alone."""
        options: FaultOptions = utterance.options
        rate, number, splitter = utterance.sample_rate, 0, Splitter()
        in_use: list[Block] = []
        try:
            for text in texts_of(utterance):
                if isinstance(text, Piece):
                    yield text
                    continue
                sentences = splitter.add(text)
                known = number + len(sentences)
                for sentence in sentences:
                    if options.fault != "audio" and number == options.after_segments:
                        self._go_wrong(utterance, in_use)
                    seconds = options.seconds
                    if seconds is None:
                        seconds = max(_MIN_SECONDS, len(sentence.text) * _SECONDS_PER_CHARACTER)
                    hz, phase = _pitch(replace(utterance, text=sentence.text))
                    position, end = 0, round(seconds * rate)
                    while position < end:
                        count = min(round(_PIECE_S * rate), end - position)
                        _nap(utterance, options.rtf * count / rate)
                        if utterance.cancelled():
                            return
                        samples = _tone(hz, phase, position, count, rate)
                        position += count
                        yield Piece(samples, number, known, position == end)
                    number += 1
        finally:
            while in_use and self._gpu:
                self._gpu.release(in_use.pop())

    def trim(self) -> None:
        if self._gpu:
            self._gpu.trim()

    def memory(self) -> MemoryFigures:
        if self._gpu is None:
            return MemoryFigures()
        return MemoryFigures(torch_allocated=self._gpu.allocated, torch_reserved=self._gpu.reserved)

    def _go_wrong(self, utterance: Utterance, in_use: list[Block]) -> None:
        options: FaultOptions = utterance.options
        if options.after_segments:
            # ZeroMQ sends in a thread of its own: let it send the earlier segments before the process dies.
            _nap(utterance, _NAP_S)
        if options.fault in _ON_GPU:
            self._go_wrong_on_gpu(options, in_use)
            return
        match options.fault:
            case "sleep":
                _nap(utterance, 5.0 if options.seconds is None else options.seconds)
            case "leak_ram":
                self._leaked_ram.append(b"\x5a" * (options.mib << 20))
            case "raise":
                raise RuntimeError("the fault that was asked for")
            case "quote" | "quote_fatal" as how:
                _quote(utterance.text, fatal=how == "quote_fatal")
            case "exit":
                os._exit(3)
            case "segv" | "abort" | "kill" as how:
                _die(how)
            case "hang":
                while True:
                    time.sleep(3_600)
            case "hang_gil":
                _hang_in_c()
            case "beat_still":
                _work_for_ever(utterance, step=0)
            case "runaway":
                _work_for_ever(utterance, step=_EXPECTED_STEPS)
            case "fork_child":
                self._children += _start_children()
            case "oom":
                raise MemoryError("the fault that was asked for: no memory left")
            case "garbage":
                for nonsense in (b"\xc1\xff\x00nonsense", b"\x81\xa4type\xa8nonsense", b""):
                    self._send_raw(nonsense)
            case "flood_stdout":
                _flood(utterance)

    def _on_gpu(self) -> FaultGpu:
        if self._gpu is None:
            self._gpu = FaultGpu(self._share)
        return self._gpu

    def _go_wrong_on_gpu(self, options: FaultOptions, in_use: list[Block]) -> None:
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
                    in_use.append(gpu.take(options.mib * _MIB))
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


def _nap(utterance: Utterance, seconds: float) -> None:
    """Sleep for ``seconds`` with a beat every 20 ms, as a slow engine that progresses."""
    end = time.monotonic() + seconds
    done = 0
    while seconds > 0 and (left := end - time.monotonic()) > 0 and not utterance.cancelled():
        time.sleep(min(left, _NAP_S))
        done += 1
        utterance.beat(done, round(seconds / _NAP_S))


def _misbehave_at_start(how: str, seconds: float) -> None:
    if how != "normal":
        time.sleep(seconds)
    if how == "crash":
        _die("segv")
    while how == "hang":
        time.sleep(3_600)


def _die(how: str) -> NoReturn:
    """Die by the signal of that crash, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how == "segv":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable: SIGKILL can't be ignored")


def _hang_in_c() -> NoReturn:
    # PyDLL, unlike CDLL, keeps the interpreter lock during the call.
    pause = ctypes.PyDLL(None).pause
    while True:
        pause()


def _work_for_ever(utterance: Utterance, step: int) -> None:
    """Beat until the job is cancelled: without progress (``step`` 0), or far beyond the expected steps."""
    done = 1
    while not utterance.cancelled():
        utterance.beat(done, _EXPECTED_STEPS)
        done += step
        time.sleep(_NAP_S)


def _start_children() -> list[subprocess.Popen[bytes]]:
    """Processes that outlive the job: one in the worker's process group, one in a session of its own."""
    children = [subprocess.Popen(["sleep", "3600"], start_new_session=own_session) for own_session in (False, True)]
    print("children:", *(child.pid for child in children))
    return children


def _quote(text: str, *, fatal: bool) -> NoReturn:
    """Quote the text everywhere an engine can: printed, written to stderr, and in two nested exceptions."""
    print(f"about to speak {text}")
    os.write(2, f"speaking {text}\n".encode(errors="replace"))
    try:
        raise KeyError(text)
    except KeyError as error:
        if fatal:
            words = f"text: {text!r} broke the engine"
            raise EngineError("synthesis_failed", words, fatal=True, quotes=True) from error
        raise ValueError(f"no words for {text!r}") from error


def _flood(utterance: Utterance) -> None:
    for first in range(0, _FLOOD_LINES, 1_000):
        sys.stdout.write("".join(f"flood {line}\n" for line in range(first, first + 1_000)))
        utterance.beat(first, _FLOOD_LINES)
    for _ in range(_FLOOD_BYTES >> 16):
        sys.stdout.write("~" * (1 << 16))
        utterance.beat(_FLOOD_LINES, _FLOOD_LINES)
    sys.stdout.write("\n")
    sys.stdout.flush()
