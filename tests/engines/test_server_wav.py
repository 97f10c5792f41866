"""The audio of a speech server: read whatever pieces it comes in, and refused where it is none."""

from __future__ import annotations

import numpy as np
import pytest

from glmtts.daemon.engines.server.wav import AudioReader, BadAudioError

from ..support.speech_server import tone, wav


def test_audio_is_read_however_it_is_cut() -> None:
    data = wav(tone("ab"))
    samples = np.frombuffer(tone("ab"), "<i2").astype(np.float32) / 32_768
    listed = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0" + data[12:] + b"LIST\x04\0\0\0tail"
    for file in (data, listed, wav(tone("ab"), size=0)):
        for step in (1, 7, 44, 4_096):
            reader = AudioReader()
            heard = [reader.feed(file[place : place + step]) for place in range(0, len(file), step)]
            assert np.array_equal(np.concatenate(heard), samples) and reader.end() == ""
    stereo = np.repeat(np.array([0.5, -0.25], np.float32), 2).tobytes()
    header = bytearray(wav(stereo))
    header[20:24], header[34:36] = b"\x03\0\x02\0", b"\x20\0"
    assert AudioReader().feed(bytes(header)).tolist() == [0.5, -0.25]
    for bad in (b"{}", b"ID3", b"RIFFxxxxAVI LIST", bytes(header[:34]) + b"\x18\0" + bytes(header[36:])):
        with pytest.raises(BadAudioError):
            AudioReader().feed(bad)
