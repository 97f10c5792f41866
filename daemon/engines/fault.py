"""An engine for tests and operators: it makes a tone, and misbehaves on request in every way that a real one might.

Nothing here is simulated: ``segv`` is a segmentation fault, ``hang_gil`` really holds the interpreter lock in C.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from glmtts.protocol.events import Voice

from .base import Engine, EngineError, Piece, Utterance
from .options import FaultOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SECONDS_PER_CHARACTER = 0.06
_MIN_SECONDS = 0.2
#: The longest piece: what a stream is cut into, and how often a slow job gives a sign of life.
_PIECE_S = 0.5
_NAP_S = 0.02
_FLOOD_LINES = 200_000
_FLOOD_BYTES = 4 << 20

#: The lowest pitch of each voice, in Hz. Reference recordings have their own octave.
_VOICES = {"tone": 220.0, "tone-high": 440.0, "tone-low": 110.0}
_REFERENCE_HZ = 330.0


class FaultEngine(Engine):
    """Speaks a tone whose pitch and phase follow from voice, reference, seed and text."""

    name = "fault"
    version = "1"
    sample_rates = (24_000, 32_000)
    options = FaultOptions
    clones_voices = True

    def __init__(self, settings: dict[str, Any], *, send_raw: Callable[[bytes], None]) -> None:
        self._send_raw = send_raw
        self._leaked_ram: list[bytes] = []
        self._gpu: _Gpu | None = None
        _misbehave_at_start(settings.get("start", "normal"), float(settings.get("start_s", 0.0)))

    @property
    def voices(self) -> list[Voice]:
        return [Voice(name=name, language="", description=f"a tone above {hz:g} Hz") for name, hz in _VOICES.items()]

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        options: FaultOptions = utterance.options
        goes_wrong = options.fault != "audio"
        # Going wrong after N segments needs one more to be on its way.
        segments = max(options.segments, options.after_segments + 1) if goes_wrong else options.segments
        seconds = options.seconds
        if seconds is None or options.fault == "sleep":
            seconds = max(_MIN_SECONDS, len(utterance.text) * _SECONDS_PER_CHARACTER)
        rate = utterance.sample_rate
        hz, phase = _pitch(utterance)
        total = round(seconds * rate)
        piece = round(_PIECE_S * rate)
        for segment in range(segments):
            if goes_wrong and segment == options.after_segments:
                self._go_wrong(utterance)
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

    def trim(self) -> None:
        """Nothing to give back: a leak is a leak."""

    def _go_wrong(self, utterance: Utterance) -> None:
        options: FaultOptions = utterance.options
        if options.after_segments:
            # ZeroMQ sends in a thread of its own: let the segments that were spoken leave before this process does.
            _nap(utterance, _NAP_S)
        match options.fault:
            case "sleep":
                _nap(utterance, 5.0 if options.seconds is None else options.seconds)
            case "leak_ram":
                self._leaked_ram.append(b"\x5a" * (options.mib << 20))
            case "leak_vram":
                self._gpu = self._gpu or _Gpu()
                self._gpu.leak(options.mib << 20)
            case "raise":
                raise RuntimeError("the fault that was asked for")
            case "exit":
                os._exit(3)
            case "segv" | "abort" | "kill" as how:
                _die(how)
            case "hang":
                while True:
                    time.sleep(3_600)
            case "hang_gil":
                _hang_in_c()
            case "oom":
                raise MemoryError("the fault that was asked for: no memory left")
            case "garbage":
                for nonsense in (b"\xc1\xff\x00nonsense", b"\x81\xa4type\xa8nonsense", b""):
                    self._send_raw(nonsense)
            case "flood_stdout":
                _flood(utterance)


def _pitch(utterance: Utterance) -> tuple[float, float]:
    """Frequency within the voice's octave and phase: 64 bits that differ for every other text, voice and seed."""
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
    # In 64 bits: with 32 the pitch of the tenth minute would waver.
    angle = np.arange(position, position + count) * (2 * np.pi * hz / rate) + phase
    samples: NDArray[np.float32] = (0.3 * np.sin(angle)).astype(np.float32)
    samples.flags.writeable = False
    return samples


def _nap(utterance: Utterance, seconds: float) -> None:
    """Take that long, in short naps with a beat after each, as an engine that is slow but moves."""
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
    """End by the signal that such a crash ends by, without leaving a core file about."""
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


def _flood(utterance: Utterance) -> None:
    for first in range(0, _FLOOD_LINES, 1_000):
        sys.stdout.write("".join(f"flood {line}\n" for line in range(first, first + 1_000)))
        utterance.beat(first, _FLOOD_LINES)
    for _ in range(_FLOOD_BYTES >> 16):
        sys.stdout.write("~" * (1 << 16))
        utterance.beat(_FLOOD_LINES, _FLOOD_LINES)
    sys.stdout.write("\n")
    sys.stdout.flush()


class _Gpu:
    """Memory of the first visible GPU, taken with the CUDA driver's own functions: no torch is needed to leak."""

    def __init__(self) -> None:
        try:
            self._cuda: Any = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise _no_gpu() from None
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if (
            self._cuda.cuInit(0)
            or self._cuda.cuDeviceGet(ctypes.byref(device), 0)
            or self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
            or self._cuda.cuCtxSetCurrent(context)
        ):
            raise _no_gpu()

    def leak(self, count: int) -> None:
        """Take ``count`` bytes and forget about them. Raises MemoryError when the GPU has no more."""
        address = ctypes.c_uint64()
        if count and self._cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(count)):
            raise MemoryError(f"the GPU has no {count >> 20} MiB left to leak")


def _no_gpu() -> EngineError:
    return EngineError("bad_request", "options.fault: leak_vram needs a GPU, and this worker sees none")
