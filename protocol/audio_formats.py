"""The audio formats of the wire: their names, and the sample rates that each one can hold."""

from __future__ import annotations

from typing import Literal

AudioFormat = Literal["wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le"]

FORMATS: tuple[AudioFormat, ...] = ("wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le")

#: The formats that a stream can be sent in: every chunk can be played by itself.
STREAM_FORMATS: tuple[AudioFormat, ...] = ("pcm_s16le", "pcm_f32le")

MIN_SAMPLE_RATE = 8_000
MAX_SAMPLE_RATE = 48_000

#: Sample rates in Hz that an encoder takes, where it does not take all: RFC 6716 section 2 (Opus), ISO/IEC 11172-3
#: and 13818-3 with the MPEG-2.5 rates that every decoder knows (MP3).
ENCODER_RATES: dict[str, tuple[int, ...]] = {
    "ogg": (8_000, 12_000, 16_000, 24_000, 48_000),
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}

#: File name endings by which a program may choose a format.
FORMAT_OF_SUFFIX: dict[str, AudioFormat] = {
    ".wav": "wav",
    ".flac": "flac",
    ".ogg": "ogg",
    ".opus": "ogg",
    ".mp3": "mp3",
    ".pcm": "pcm_s16le",
    ".raw": "pcm_s16le",
}
