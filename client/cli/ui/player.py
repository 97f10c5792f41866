"""Playing speech as it arrives, with a player of the desktop."""

from __future__ import annotations

import array
import contextlib
import shutil
import struct
import subprocess

from glmtts.protocol.system_words import exit_in_words

from ..failures import Failure
from .sinks import Sink
from .wav import wav_header

#: Players in the order of preference, each with the container and the arguments for 16-bit samples on standard input.
#: pw-play has no raw mode in older versions, and reads AU from a pipe; ffplay's option for the number of channels
#: differs between versions, and a WAV header has it.
_PLAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pw-play": ("au", ("-",)),
    "paplay": ("raw", ("--raw", "--format=s16le", "--rate={rate}", "--channels={channels}")),
    "aplay": ("raw", ("-q", "-t", "raw", "-f", "S16_LE", "-r", "{rate}", "-c", "{channels}", "-")),
    "ffplay": ("wav", ("-nodisp", "-autoexit", "-loglevel", "error", "-f", "wav", "-i", "-")),
}


def find_player() -> str:
    """The name of the first player that is installed. Raises Failure without one."""
    for name in _PLAYERS:
        if shutil.which(name):
            return name
    raise Failure(
        "no player is installed: none of pw-play, paplay, aplay and ffplay. Install one (Debian and Ubuntu: "
        "pipewire-bin, pulseaudio-utils, alsa-utils or ffmpeg), or write a file with -o FILE.",
        code="no_player",
    )


class PlayerSink(Sink):
    """A running player of 16-bit samples; the end of the block waits for the end of the sound."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._container, self._arguments = _PLAYERS[name]
        self._process: subprocess.Popen[bytes]

    def start(self, sample_rate: int, channels: int) -> None:
        self._process = subprocess.Popen(
            [self._name, *(a.format(rate=sample_rate, channels=channels) for a in self._arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._stack.push(self._end)
        if self._container == "au":
            # Sun's AU header: 16-bit linear samples (encoding 3), big-endian, of unknown length.
            self._send(struct.pack(">4s5I", b".snd", 24, 0xFFFFFFFF, 3, sample_rate, channels))
        elif self._container == "wav":
            self._send(wav_header(sample_rate, channels, 2, None, is_float=False))

    def write(self, samples: bytes) -> None:
        if self._container == "au":
            words = array.array("h", samples)
            words.byteswap()
            samples = words.tobytes()
        self._send(samples)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(data)
            self._process.stdin.flush()
            return
        self._end(None)  # the player has ended, and says why
        raise Failure(f"{self._name} ended before the speech", code="player_failed")

    def _end(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            self._process.kill()
        if self._process.stderr is None or self._process.stderr.closed:
            return
        _out, errors = self._process.communicate()
        if kind is None and self._process.returncode:
            words = errors.decode(errors="replace").strip()[-300:]
            said = f"{self._name} {exit_in_words(self._process.returncode)}{f': {words}' if words else ''}"
            raise Failure(said, code="player_failed")
