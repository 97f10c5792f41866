"""Reference recordings: decoded, or refused with the reason.

``python -m glmtts.daemon.storage.recordings`` checks the recording on its standard input and prints JSON. The daemon
runs it as a process of its own, so that a decoder that crashes on a hostile file takes nothing else with it, and
confines it, so that a decoder that such a file takes over can do no harm.
"""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import confinement
from .recording_files import ACCEPTED, CONVERT, not_a_recording, recording_ending, with_true_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: libsndfile's names of the formats of docs/protocol.md. It knows many more, each with a parser to attack.
_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
_MIN_RATE = 8_000
_MAX_RATE = 192_000
_MAX_CHANNELS = 8
#: About -60 dB: what is quieter holds no voice.
_SILENCE_RMS = 1e-3
#: A voice is louder for 0.2 s at least, which a click is not. Measured in parts of 20 ms.
_PART_S, _VOICE_S = 0.02, 0.2
#: Speech has peaks of up to three times the level that one sample of a thousand exceeds; float files may go a little
#: beyond full scale.
_BROKEN_PEAK, _LEAST_BROKEN = 16.0, 4.0
#: libsndfile's count for a FLAC file that was written to a pipe: its length is not in its header.
_UNKNOWN_FRAMES = 1 << 62
#: Samples that are read at a time from such a file: after its end there is an error, and a part that was begun is lost.
_SMALL_BLOCK = 256


class BadRecordingError(Exception):
    """The recording can't be used; the message says why, and what is accepted."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded recording: mono float32 samples of shape (n,) in -1..1. ``channels`` are those of the file."""

    samples: NDArray[np.float32]
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def decode(data: bytes, *, min_s: float = 1.0, max_s: float = 30.0) -> Recording:
    """Decode a WAV, FLAC, OGG or MP3 file. Raises BadRecordingError.

    No more than ``max_s`` is ever decoded, whatever the file's header claims.
    """
    import soundfile

    if not recording_ending(data):
        raise BadRecordingError(not_a_recording(data))
    try:
        with soundfile.SoundFile(io.BytesIO(with_true_size(data))) as file:
            _check_header(file)
            samples = _read_mono(file, max_s)
            rate, channels = int(file.samplerate), int(file.channels)
    except (soundfile.SoundFileError, ValueError, TypeError, OSError, MemoryError) as error:
        raise BadRecordingError(f"the recording can't be decoded ({_words(error)}); {ACCEPTED}: {CONVERT}") from None
    seconds = len(samples) / rate
    if seconds < min_s:
        raise BadRecordingError(f"the recording has {seconds:.2f} s; at least {min_s:g} s are needed")
    _check_samples(samples, rate)
    peak = float(np.max(np.abs(samples)))
    if peak > 1.0:
        samples /= peak
    return Recording(samples, rate, channels)


def _check_samples(samples: NDArray[np.float32], rate: int) -> None:
    """Refuse broken samples, by their number and place, and silence."""
    broken = ~np.isfinite(samples)
    if not broken.any() and np.max(np.abs(samples)) > _LEAST_BROKEN:
        # A scale other than -1..1 is no fault, a few samples beyond all others are.
        level = np.abs(samples)
        broken = level > max(_LEAST_BROKEN, _BROKEN_PEAK * float(np.quantile(level, 0.999)))
    if broken.any():
        first = int(np.argmax(broken))
        what = "far beyond all others" if np.isfinite(samples[first]) else "not numbers"
        raise BadRecordingError(
            f"the recording has samples that are {what}: {np.count_nonzero(broken)}, the first ({samples[first]:.4g}) "
            f"at {first / rate:.3f} s; cut them out, or export the recording again as 16-bit WAV"
        )
    part = min(round(_PART_S * rate), len(samples))
    # The spread within a part: an offset, which a muted microphone may have, is no sound.
    spread = np.sort(samples[: len(samples) // part * part].reshape(-1, part).std(axis=1, dtype=np.float64))
    peak = float(np.max(np.abs(samples)))
    if spread[-min(len(spread), math.ceil(_VOICE_S / _PART_S))] / max(peak, 1.0) < _SILENCE_RMS:
        raise BadRecordingError(
            "the recording is silent; record it louder, and check that the microphone is not muted and that its "
            "channels don't cancel out"
        )


def _words(error: Exception) -> str:
    words = str(getattr(error, "error_string", "") or error).strip().removeprefix("Error : ").rstrip(".")
    return words[:150] or "it is damaged"


def _check_header(file: Any) -> None:
    if file.format not in _FORMATS:
        raise BadRecordingError(f"the recording is a {file.format} file; {ACCEPTED}")
    if not _MIN_RATE <= file.samplerate <= _MAX_RATE:
        raise BadRecordingError(
            f"the recording has {file.samplerate} samples a second; {_MIN_RATE} to {_MAX_RATE} Hz are accepted"
        )
    if file.channels > _MAX_CHANNELS:
        raise BadRecordingError(f"the recording has {file.channels} channels; send it in mono or stereo")


def _read_mono(file: Any, max_s: float) -> NDArray[np.float32]:
    """Read in blocks, because a small file can claim, or unpack to, any length."""
    import soundfile

    limit = int(max_s * file.samplerate)
    parts: list[NDArray[np.float32]] = []
    count = 0
    endless = file.frames >= _UNKNOWN_FRAMES
    while True:
        try:
            block = file.read(_SMALL_BLOCK if endless else file.samplerate, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            if endless and count:
                break
            raise BadRecordingError(
                f"the recording is damaged or cut off after {count / file.samplerate:.0f} s ({_words(error)}); send "
                "the whole file"
            ) from None
        if not len(block):
            break
        count += len(block)
        if count > limit:
            raise BadRecordingError(f"the recording is longer than {max_s:g} s; cut it, ten seconds are plenty")
        with np.errstate(all="ignore"):
            parts.append(block.mean(axis=1, dtype=np.float32))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def confine() -> None:
    """Take everything but its libraries from this process, which reads untrusted bytes with decoders in C."""
    import soundfile  # noqa: F401 - it may look for its library with other programs

    confinement.confine_files()
    confinement.confine_calls()


def main(argv: list[str] | None = None) -> int:
    """``[MIN_S MAX_S]``: check standard input; print {"seconds", "sample_rate", "channels"} or {"error"}."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        min_s, max_s = map(float, arguments) if arguments else (1.0, 30.0)
    except ValueError:
        print("usage: python -m glmtts.daemon.storage.recordings [MIN_S MAX_S] < RECORDING", file=sys.stderr)
        return 2
    confine()
    try:
        recording = decode(sys.stdin.buffer.read(), min_s=min_s, max_s=max_s)
    except BadRecordingError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    seconds = round(recording.seconds, 3)
    print(json.dumps({"seconds": seconds, "sample_rate": recording.sample_rate, "channels": recording.channels}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
