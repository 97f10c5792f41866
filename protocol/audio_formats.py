"""The audio formats of the wire, and the sample rates that each one supports."""

from __future__ import annotations

import re
from typing import Literal, get_args

AudioFormat = Literal[
    "wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le", "ulaw", "alaw", "wav_ulaw", "wav_alaw"
]  # fmt: skip

FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)

#: The largest recording that a daemon can be configured to take.
MAX_RECORDING_MIB = 256

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
    ".wave": "wav",
    ".flac": "flac",
    ".ogg": "ogg",
    ".oga": "ogg",
    ".opus": "ogg",
    ".mp3": "mp3",
    ".pcm": "pcm_s16le",
    ".raw": "pcm_s16le",
    ".ulaw": "ulaw",
    ".alaw": "alaw",
}

#: Endings of sound and video files that are not made here: a program believes the name.
_OTHER_SUFFIXES = frozenset(
    {
        *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".au", ".caf", ".m4a", ".m4b"),
        *(".m4r", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpeg", ".mpg", ".snd", ".spx", ".voc", ".w64", ".weba"),
        *(".webm", ".wma", ".wv"),
    }
)
#: What is taken for an ending: "v1.2" and "chapter.1" have none.
_SUFFIX = re.compile(r"(?<=.)\.(?=[0-9]*[A-Za-z])[0-9A-Za-z]{2,5}\Z")


def format_of_name(name: str) -> AudioFormat | None:
    """The format that the ending of a file name says, or None."""
    return FORMAT_OF_SUFFIX.get(_suffix(name))


def misnamed(name: str, format: str | None) -> str:
    """Why a file of this name can't be in ``format``, or ``""``; None: the name alone has to say the format."""
    suffix = _suffix(name)
    meant = FORMAT_OF_SUFFIX.get(suffix)
    if meant is None:
        if format is None and suffix:
            others = "use one of them" if suffix in _OTHER_SUFFIXES else "give the format as well"
            return f"{suffix} is none of the known formats ({_KNOWN}); {others}"
        if format is not None and suffix in _OTHER_SUFFIXES:
            return f"{suffix} is the ending of another kind of file than {format}; use {suffix_of(format)}"
        return ""
    # Several kinds of samples share an ending; the name of bare ones says no more than that.
    bare = suffix in (".pcm", ".raw") and format in ("ulaw", "alaw")
    if format is None or suffix_of(meant) == suffix_of(format) or bare:
        return ""
    return f"{suffix} says {meant}, but the format is {format}; use {suffix_of(format)}, or the format {meant}"


def suffix_of(format: str) -> str:
    """The usual file name ending of a format: ``.wav``; ``.pcm`` for samples without a header."""
    return f".{format.partition('_')[0]}"


def _suffix(name: str) -> str:
    found = _SUFFIX.search(name)
    return found[0].lower() if found else ""


_KNOWN = " ".join(FORMAT_OF_SUFFIX)
