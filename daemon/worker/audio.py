"""From an engine's samples to a file's bytes: resampling, and the formats of the wire.

Equal samples make equal bytes. soxr and soundfile are imported on first use: a worker that sends PCM or WAV at its
engine's own rate starts in half the time.
"""

from __future__ import annotations

import abc
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from glmtts.protocol.audio_formats import ENCODER_RATES, FORMATS, nearest_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]
    Convert = Callable[[Samples], bytes]


def output_rate(requested: int | None, default: int, audio_format: str) -> int:
    """The rate in Hz of the finished audio: the requested one, else the format's nearest to the default.

    Raises ValueError for a requested rate that the format does not support.
    """
    if requested is None:
        return nearest_rate(audio_format, default)
    rates = ENCODER_RATES.get(audio_format)
    if rates and requested not in rates:
        raise ValueError(f"{audio_format} supports only {', '.join(map(str, rates))} Hz")
    return requested


def native_rate(rate: int, native_rates: Sequence[int]) -> int:
    """The rate to synthesise at for audio of ``rate``: itself, else the next one above it, else the highest."""
    return min((native for native in native_rates if native >= rate), default=max(native_rates))


class Resampler:
    """Resamples a stream of mono chunks (soxr, high quality); holds back up to 30 ms until the end."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        import soxr

        self._stream: Any = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")

    def add(self, samples: Samples) -> Samples:
        """The samples that are ready after these."""
        resampled: Samples = self._stream.resample_chunk(samples)
        return resampled

    def finish(self) -> Samples:
        """The remaining samples."""
        rest: Samples = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        return rest


def pcm_s16le(samples: Samples) -> bytes:
    """16-bit little-endian samples, clipped to -1..1."""
    scaled = np.multiply(samples, 32_767.0)
    np.rint(scaled, out=scaled)
    # Faster than np.clip on the short chunks of a stream.
    np.minimum(scaled, 32_767.0, out=scaled)
    np.maximum(scaled, -32_768.0, out=scaled)
    return scaled.astype("<i2").tobytes()


def pcm_f32le(samples: Samples) -> bytes:
    """32-bit little-endian floats, not clipped."""
    return samples.astype("<f4", copy=False).tobytes()


_WAV_HEADER_BYTES = 44


def g711(audio_format: str) -> Convert:
    """The conversion to bytes of ITU-T G.711: ``ulaw`` or ``alaw``."""
    import soundfile

    subtype = audio_format.removeprefix("wav_").upper()

    def convert(samples: Samples) -> bytes:
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", samplerate=8_000, channels=1, format="RAW", subtype=subtype) as file:
            file.write(np.clip(samples, -1.0, 1.0))
        return buffer.getvalue()

    return convert


def converter(audio_format: str) -> Convert:
    """The conversion of samples to the bytes of a format whose samples stand side by side."""
    if audio_format == "pcm_f32le":
        return pcm_f32le
    return g711(audio_format) if "law" in audio_format else pcm_s16le


def sample_bytes(audio_format: str) -> int:
    """The bytes of one sample in a format whose samples stand side by side."""
    return 4 if audio_format == "pcm_f32le" else 1 if "law" in audio_format else 2


#: The samples of a WAV file by its codec (RFC 2361): the tag, and the bytes of a sample.
_WAV_CODECS = {"wav": (1, 2), "wav_alaw": (6, 1), "wav_ulaw": (7, 1)}


def wav_header(data_bytes: int | None, sample_rate: int, audio_format: str = "wav") -> bytes:
    """The bytes before the samples of a mono WAV file, 16-bit or G.711.

    ``data_bytes``: None, and more than 4 GiB, is marked as "until the end", as most programs read it.
    """
    # A RIFF file counts its bytes in 32 bits.
    unknown = data_bytes is None or data_bytes > 0xFFFFFFFF - 36
    size = 0xFFFFFFFF if unknown or data_bytes is None else data_bytes
    tag, width = _WAV_CODECS[audio_format]
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        size if unknown else 36 + size,
        b"WAVE",
        b"fmt ",
        16,
        tag,
        1,
        sample_rate,
        sample_rate * width,
        width,
        8 * width,
        b"data",
        size,
    )


def duration_s(data: bytes, audio_format: str, sample_rate: int) -> float:
    """The duration in seconds of a file made by this module; 0 for a file that was damaged since."""
    if audio_format in LIBSNDFILE:
        import soundfile

        try:
            return float(soundfile.info(io.BytesIO(data)).duration)
        except soundfile.LibsndfileError:
            return 0.0
    header = _WAV_HEADER_BYTES if audio_format in _WAV_CODECS else 0
    return max(0, len(data) - header) / sample_bytes(audio_format) / sample_rate


class Encoder(abc.ABC):
    """Makes one file from chunks of mono float32 samples in -1..1."""

    @abc.abstractmethod
    def add(self, samples: Samples) -> None:
        """Take the next samples."""

    @abc.abstractmethod
    def finish(self) -> bytes:
        """The whole file; the last call."""


def encoder(audio_format: str, sample_rate: int) -> Encoder:
    """An encoder for one of the formats of the wire. Raises ValueError for any other."""
    if audio_format in LIBSNDFILE:
        return _SndfileEncoder(audio_format, sample_rate)
    if audio_format in FORMATS:
        return _PcmEncoder(audio_format, sample_rate)
    raise ValueError(f"{audio_format} is not one of {', '.join(FORMATS)}")


class _PcmEncoder(Encoder):
    """Every format whose samples stand side by side, with a header or without."""

    def __init__(self, audio_format: str, sample_rate: int) -> None:
        self._convert = converter(audio_format)
        self._format, self._rate = audio_format, sample_rate
        self._parts: list[bytes] = []

    def add(self, samples: Samples) -> None:
        self._parts.append(self._convert(samples))

    def finish(self) -> bytes:
        if self._format in _WAV_CODECS:
            self._parts.insert(0, wav_header(sum(map(len, self._parts)), self._rate, self._format))
        return b"".join(self._parts)


#: Formats that libsndfile encodes: its format and subtype.
LIBSNDFILE = {"flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}

#: The constant bit rate of an MP3 by its least sample rate, in kbit/s: of what libsndfile's levels reach, from and to.
#: A stream lacks the frame with its length: of a variable rate, many programs would take the length from the size, and
#: lose most of the speech.
_MP3_RATES = ((32_000, 96, 32, 320), (16_000, 64, 8, 160), (0, 32, 8, 64))
#: LAME makes an MP3 of a constant rate quieter, by this.
_MP3_SCALE = 0.95


def sndfile_writer(file: BinaryIO | io.RawIOBase, audio_format: str, sample_rate: int) -> Any:
    """A soundfile.SoundFile that writes one of ``LIBSNDFILE`` to ``file``."""
    import soundfile

    container, subtype = LIBSNDFILE[audio_format]
    more: dict[str, Any] = {}
    if audio_format == "mp3":
        kbit_s, least, most = next(row[1:] for row in _MP3_RATES if sample_rate >= row[0])
        more = {"bitrate_mode": "CONSTANT", "compression_level": (most - kbit_s) / (most - least)}
    return soundfile.SoundFile(file, "w", samplerate=sample_rate, channels=1, format=container, subtype=subtype, **more)


def clipped(samples: Samples, audio_format: str) -> Samples:
    """Samples in -1..1 for :func:`sndfile_writer`'s file: they are heard as loud in each format."""
    samples = np.clip(samples, -1.0, 1.0)
    return samples / np.float32(_MP3_SCALE) if audio_format == "mp3" else samples


class _SndfileEncoder(Encoder):
    """``flac``, ``ogg`` and ``mp3``: encodes as the samples come, so that a long text has no long wait at its end."""

    def __init__(self, audio_format: str, sample_rate: int) -> None:
        self._format = audio_format
        self._buffer = io.BytesIO()
        self._file: Any = sndfile_writer(self._buffer, audio_format, sample_rate)
        self._chunk = sample_rate
        self._is_empty = True

    def add(self, samples: Samples) -> None:
        samples = clipped(samples, self._format)
        # libsndfile's Ogg writer crashes on very long writes; write a second at a time.
        for start in range(0, len(samples), self._chunk):
            self._file.write(samples[start : start + self._chunk])
            self._is_empty = False

    def finish(self) -> bytes:
        if self._is_empty:
            # libsndfile writes no header before the first sample; a file of one is the shortest that opens.
            self._file.write(np.zeros(1, np.float32))
        self._file.close()
        data = self._buffer.getvalue()
        return with_steady_serial(data) if self._format == "ogg" else data


_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_crc(page: bytes) -> int:
    """The checksum of an Ogg page (RFC 3533 section 6): zlib's polynomial with its bits the other way round."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def ogg_pages(data: bytes) -> list[bytes]:
    """The whole pages of an Ogg stream; what is left may become one (RFC 3533 section 6)."""
    pages: list[bytes] = []
    at = 0
    while len(data) >= at + 27 and len(data) >= (body := at + 27 + data[at + 26]):
        end = body + sum(data[at + 27 : body])
        if end > len(data):
            break
        pages.append(data[at:end])
        at = end
    return pages


def with_serial(page: bytes, serial: int) -> bytes:
    """An Ogg page with another serial number of its stream."""
    fixed = bytearray(page)
    struct.pack_into("<I", fixed, 14, serial)
    struct.pack_into("<I", fixed, 22, 0)
    struct.pack_into("<I", fixed, 22, _ogg_crc(bytes(fixed)))
    return bytes(fixed)


def with_steady_serial(data: bytes) -> bytes:
    """Replace the random serial number of an Ogg file of one stream by a checksum of its content.

    With libsndfile's random number, equal audio would make different files.
    """
    pages = ogg_pages(data)
    content = 0
    for page in pages:
        content = zlib.crc32(page[27 + page[26] :], content)
    return b"".join(with_serial(page, content) for page in pages)
