"""Audio out of an answer while it comes: WAV with its header, or raw 16-bit samples."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
#: Servers that stream don't know the length and write a number from here on, or 0.
_UNKNOWN = 0x7FFF_0000
#: A header has its samples within this many bytes; more is no header.
_HEADER = 64 << 10


class BadAudioError(Exception):
    """The bytes are not audio that can be read."""


class AudioReader:
    """Turns the bytes of one answer into samples. Owns what is left between two of them."""

    def __init__(self, raw_rate: int = 0) -> None:
        """``raw_rate``: the rate in Hz of raw 16-bit mono samples; 0: the answer must be WAV."""
        self._raw_rate = raw_rate
        self._rest = b""
        self._left: int | None = None
        self._float = False
        self._channels = 1
        #: In Hz; 0 until the header has come.
        self.rate = 0

    def feed(self, data: bytes) -> Samples:
        """Samples of shape (n,), mono in -1..1, that ``data`` completes. Raises BadAudioError."""
        data = self._rest + data
        if not self.rate:
            start = self._start(data)
            if start is None:
                self._rest = data
                return np.zeros(0, np.float32)
            data = data[start:]
        if self._left is not None:
            # Chunks behind the samples, such as a title, are no audio.
            data = data[: self._left]
        width = self._channels * (4 if self._float else 2)
        whole = len(data) - len(data) % width
        self._rest = data[whole:]
        if self._left is not None:
            self._left -= whole
        samples: Samples
        if self._float:
            samples = np.frombuffer(data[:whole], "<f4").astype(np.float32)
        else:
            samples = np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32_768.0
        return samples.reshape(-1, 2).mean(axis=1, dtype=np.float32) if self._channels == 2 else samples

    def end(self) -> str:
        """Why the audio is not whole, now that the answer has ended; ``""`` if it is."""
        if not self.rate:
            return "it ended within the WAV header" if self._rest else "it has no audio"
        if self._left:
            return f"the WAV header announces {self._left:,} bytes more than came"
        return ""

    def _start(self, data: bytes) -> int | None:
        """Read the header: where the samples begin, or None while it is not whole."""
        if self._raw_rate and data[:4] != b"RIFF"[: len(data)]:
            self.rate = self._raw_rate
            return 0
        if len(data) < 12:
            if data[:4] != b"RIFF"[: len(data)]:
                raise BadAudioError("no WAV file")
            return None
        if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
            raise BadAudioError("no WAV file")
        place, rate = 12, 0
        while len(data) >= place + 8:
            name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
            place += 8
            if name == b"data":
                if not rate:
                    raise BadAudioError("a WAV file without a format")
                self.rate = rate
                self._left = None if size == 0 or size >= _UNKNOWN else size
                return place
            if name == b"fmt ":
                if len(data) < place + 16:
                    break
                rate = self._format(data[place:])
            place += size + size % 2
            if place > _HEADER:
                raise BadAudioError("a WAV file without samples in its first 64 KiB")
        return None

    def _format(self, data: bytes) -> int:
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data)
        if kind == _EXTENSIBLE and len(data) >= 26:
            kind = int.from_bytes(data[24:26], "little")
        if (kind, bits) not in ((_PCM, 16), (_FLOAT, 32)) or channels not in (1, 2) or not 8_000 <= rate <= 192_000:
            raise BadAudioError(
                f"a WAV file of {bits} bits in format {kind}, {channels} channels, {rate} Hz; it must be 16-bit PCM or "
                "32-bit float, mono or stereo, 8 to 192 kHz"
            )
        self._float, self._channels = kind == _FLOAT, channels
        return int(rate)
