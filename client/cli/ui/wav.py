"""The header of a WAV file, also of one whose length is not known yet."""

from __future__ import annotations

import struct

#: Streaming programs write this as the length of an unfinished WAV; players then read to the end of the data.
_UNKNOWN_LENGTH = 0xFFFFFFFF


def wav_header(sample_rate: int, channels: int, sample_bytes: int, data_bytes: int | None, *, is_float: bool) -> bytes:
    """The RIFF header before ``data_bytes`` of samples; None for a stream of unknown length."""
    kind = 3 if is_float else 1  # WAVE_FORMAT_IEEE_FLOAT, WAVE_FORMAT_PCM
    frame_bytes = channels * sample_bytes
    # Formats other than PCM have the size of their extension, which is 0, and a fact chunk with the number of frames.
    extension = struct.pack("<H", 0) if is_float else b""
    known = data_bytes is not None and data_bytes < _UNKNOWN_LENGTH - 64
    data_length = data_bytes if known and data_bytes is not None else _UNKNOWN_LENGTH
    fact = struct.pack("<4sII", b"fact", 4, min(data_length // frame_bytes, _UNKNOWN_LENGTH)) if is_float else b""
    fmt = struct.pack("<HHIIHH", kind, channels, sample_rate, sample_rate * frame_bytes, frame_bytes, sample_bytes * 8)
    fmt += extension
    chunks = b"WAVE" + struct.pack("<4sI", b"fmt ", len(fmt)) + fmt + fact
    padded = data_length + data_length % 2 if known else 0
    riff_length = len(chunks) + 8 + padded if known else _UNKNOWN_LENGTH
    return struct.pack("<4sI", b"RIFF", riff_length) + chunks + struct.pack("<4sI", b"data", data_length)
