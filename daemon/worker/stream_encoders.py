"""A file in pieces, as the samples come: the pieces in their order are the file, and no byte is written twice.

Measured with soundfile 0.13 and 0.14: OGG is written from front to end; FLAC writes 27 bytes of its header again when
it is closed (the length and a checksum, which may stay 0 for "unknown"); MP3 does so with its first frame, which holds
no sound and is left out here. WAV has the size for "until the end" in its header.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import audio

if TYPE_CHECKING:
    from .audio import Samples

#: The serial number of an Ogg stream; libsndfile's is random, and equal audio would make different bytes.
_SERIAL = 1
#: Bit rates in kbit/s by their index in a frame's header, for MPEG-1 and for MPEG-2 and 2.5 (ISO/IEC 11172-3, 13818-3).
_MP3_KBIT_S = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class StreamEncoder(Protocol):
    """Makes one file in pieces from chunks of mono float32 samples in -1..1."""

    def add(self, samples: Samples) -> bytes:
        """The next piece of the file, after these samples; it may be empty."""

    def finish(self) -> bytes:
        """The last piece; only :meth:`whole` comes after it."""

    def whole(self, pieces: bytes) -> bytes:
        """The file of all pieces as it is without a stream: its header says how long it is."""


def stream_encoder(audio_format: str, sample_rate: int, *, keep: bool = False) -> StreamEncoder:
    """An encoder for one of the formats of the wire; ``keep``: it can make the whole file, too."""
    if audio_format in audio.LIBSNDFILE:
        return _SndfileStream(audio_format, sample_rate, keep=keep)
    return _PcmStream(audio_format, sample_rate)


class _PcmStream:
    """Every format whose samples stand side by side, with a header or without."""

    def __init__(self, audio_format: str, sample_rate: int) -> None:
        self._convert = audio.converter(audio_format)
        self._format, self._rate = audio_format, sample_rate
        self._header = audio.wav_header(None, sample_rate, audio_format) if audio_format.startswith("wav") else b""

    def add(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + self._convert(samples)

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header

    def whole(self, pieces: bytes) -> bytes:
        if not self._format.startswith("wav"):
            return pieces
        samples = pieces[len(audio.wav_header(None, self._rate, self._format)) :]
        return audio.wav_header(len(samples), self._rate, self._format) + samples


class _SndfileStream:
    """``flac``, ``ogg`` and ``mp3``."""

    def __init__(self, audio_format: str, sample_rate: int, *, keep: bool) -> None:
        self._format = audio_format
        # OGG is never written again.
        self._tape = _Tape(keep=keep and audio_format != "ogg")
        self._file: Any = audio.sndfile_writer(self._tape, audio_format, sample_rate)
        self._chunk = sample_rate
        self._is_empty = True
        #: Bytes of the first frame of an MP3, once it is known; written, and not sent.
        self._leave_out = 0 if audio_format != "mp3" else -1

    def add(self, samples: Samples) -> bytes:
        samples = audio.clipped(samples, self._format)
        # libsndfile's Ogg writer crashes on very long writes; write a second at a time.
        for start in range(0, len(samples), self._chunk):
            self._file.write(samples[start : start + self._chunk])
            self._is_empty = False
        return self._take()

    def finish(self) -> bytes:
        if self._is_empty:
            # libsndfile writes no header before the first sample; a file of one is the shortest that opens.
            self._file.write(np.zeros(1, np.float32))
        # Taken first: what is written again by the close is not for a stream.
        piece = self._take()
        self._file.close()
        return piece + self._take()

    def whole(self, pieces: bytes) -> bytes:
        return bytes(self._tape.file) if self._tape.file is not None else pieces

    def _take(self) -> bytes:
        if self._format == "ogg":
            pages = audio.ogg_pages(self._tape.peek())
            self._tape.skip(sum(map(len, pages)))
            return b"".join(audio.with_serial(page, _SERIAL) for page in pages)
        if self._leave_out:
            data = self._tape.peek()
            if self._leave_out < 0 and len(data) >= 4:
                self._leave_out = _mp3_frame_bytes(data)
            if not 0 <= self._leave_out <= len(data):
                return b""
            self._tape.skip(self._leave_out)
            self._leave_out = 0
        data = self._tape.peek()
        self._tape.skip(len(data))
        return data


class _Tape(io.RawIOBase):
    """A file of which the front is taken away; writes to that part are dropped, but for ``file`` if it is kept."""

    def __init__(self, *, keep: bool = False) -> None:
        self._bytes = bytearray()
        self.file = bytearray() if keep else None
        #: Bytes that were taken, and the place of the next write.
        self._taken = self._at = 0

    def peek(self) -> bytes:
        """All that has not been taken."""
        return bytes(self._bytes)

    def skip(self, count: int) -> None:
        """Take that many bytes."""
        del self._bytes[:count]
        self._taken += count

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self.file is not None:
            self.file[self._at : self._at + len(data)] = data
        begin = self._at - self._taken
        self._at += len(data)
        if begin < 0:
            kept = data[-begin:]
            self._bytes[: len(kept)] = kept
        else:
            self._bytes[begin : begin + len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._taken + len(self._bytes)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, _: Any) -> int:
        """Never called while a file is written; libsndfile's interface has it."""
        return 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _mp3_frame_bytes(header: bytes) -> int:
    """The length of the MPEG layer III frame that begins with these four bytes."""
    version = 1 if header[1] & 0b11000 == 0b11000 else 2
    kbit_s = _MP3_KBIT_S[version][header[2] >> 4]
    rate = (44_100, 48_000, 32_000)[header[2] >> 2 & 0b11] >> {0b11: 0, 0b10: 1, 0b00: 2}[header[1] >> 3 & 0b11]
    return (144 if version == 1 else 72) * kbit_s * 1_000 // rate + (header[2] >> 1 & 1)
