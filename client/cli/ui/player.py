"""Playing speech as it arrives, with a player of the desktop."""

from __future__ import annotations

import array
import shutil
import struct
import subprocess
from types import TracebackType
from typing import Literal

from ..failures import Failure
from .wav import wav_header

#: Players in the order of preference, and how each one reads 16-bit samples from its standard input. pw-play has no
#: raw mode in older versions, and AU is what libsndfile, which reads for it, takes from a pipe; ffplay's option for the
#: number of channels differs between versions, and a WAV header says it without one.
_PLAYERS: tuple[tuple[str, Literal["raw", "au", "wav"], tuple[str, ...]], ...] = (
    ("pw-play", "au", ("-",)),
    ("paplay", "raw", ("--raw", "--format=s16le", "--rate={rate}", "--channels={channels}")),
    ("aplay", "raw", ("-q", "-t", "raw", "-f", "S16_LE", "-r", "{rate}", "-c", "{channels}", "-")),
    ("ffplay", "wav", ("-nodisp", "-autoexit", "-loglevel", "error", "-f", "wav", "-i", "-")),
)


def find_player() -> str:
    """The name of the first player that is installed.

    Raises Failure, saying what to install, when there is none.
    """
    for name, _, _ in _PLAYERS:
        if shutil.which(name):
            return name
    raise Failure(
        "no player is installed: none of pw-play, paplay, aplay and ffplay. Install one (Debian and Ubuntu: "
        "pipewire-bin, pulseaudio-utils, alsa-utils or ffmpeg), or write a file with -o FILE.",
        code="no_player",
    )


class Player:
    """A running player of 16-bit samples; leaving the block waits for the end of the sound."""

    def __init__(self, name: str, sample_rate: int, channels: int) -> None:
        _, container, arguments = next(player for player in _PLAYERS if player[0] == name)
        self._name = name
        self._swapped = container == "au"
        self._complaint = ""
        self._process = subprocess.Popen(
            [name, *(a.format(rate=sample_rate, channels=channels) for a in arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if container == "au":
            # Sun's AU header: 16-bit linear samples (encoding 3), big-endian, of unknown length.
            self._send(struct.pack(">4s5I", b".snd", 24, 0xFFFFFFFF, 3, sample_rate, channels))
        elif container == "wav":
            self._send(wav_header(sample_rate, channels, 2, None, is_float=False))

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._end()
        if kind is None and self._process.returncode:
            raise self._failed()

    def write(self, samples: bytes) -> None:
        """Play ``samples`` (16 bits, little-endian) after what was written before."""
        if self._swapped:
            words = array.array("h", samples)
            words.byteswap()
            samples = words.tobytes()
        self._send(samples)

    def _send(self, data: bytes) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._end()
            raise self._failed() from None

    def _end(self) -> None:
        _, words = self._process.communicate()
        self._complaint = words.decode(errors="replace").strip()[-300:]

    def _failed(self) -> Failure:
        said = f": {self._complaint}" if self._complaint else ""
        return Failure(f"{self._name} ended with status {self._process.returncode}{said}", code="player_failed")
