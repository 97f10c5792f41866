"""The audio formats of the wire, and the sample rates that each one supports."""

from __future__ import annotations

from typing import Literal, get_args

AudioFormat = Literal[
    "wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le", "ulaw", "alaw", "wav_ulaw", "wav_alaw"
]  # fmt: skip

FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)

#: Bare samples: every chunk of a stream can be played by itself.
PCM_FORMATS: tuple[AudioFormat, ...] = ("pcm_s16le", "pcm_f32le")

MIN_SAMPLE_RATE = 8_000
MAX_SAMPLE_RATE = 48_000

#: The sample rates in Hz of encoders that do not support all: RFC 6716 section 2 (Opus), ISO/IEC 11172-3 and 13818-3
#: with the MPEG-2.5 rates that every decoder supports (MP3), and telephony's (ITU-T G.711).
ENCODER_RATES: dict[str, tuple[int, ...]] = {
    "ogg": (8_000, 12_000, 16_000, 24_000, 48_000),
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    **dict.fromkeys(("ulaw", "alaw", "wav_ulaw", "wav_alaw"), (8_000,)),
}


def nearest_rate(audio_format: str, rate: int) -> int:
    """The sample rate in Hz nearest to ``rate`` that a format supports, the higher one of two."""
    rates = ENCODER_RATES.get(audio_format)
    return rate if not rates else min(rates, key=lambda other: (abs(other - rate), -other))


#: The format for the ending of a file name.
FORMAT_OF_SUFFIX: dict[str, AudioFormat] = {
    ".wav": "wav",
    ".flac": "flac",
    ".ogg": "ogg",
    ".opus": "ogg",
    ".mp3": "mp3",
    ".pcm": "pcm_s16le",
    ".raw": "pcm_s16le",
    ".ulaw": "ulaw",
    ".alaw": "alaw",
}
