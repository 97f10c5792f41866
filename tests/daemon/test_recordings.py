"""daemon/storage/recordings.py: what happens to the recording that somebody sends."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from glmtts.daemon.storage.recordings import BadRecordingError, decode


def file(samples: NDArray[np.float32], rate: int = 16_000, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def tone(seconds: float = 2.0, rate: int = 16_000, level: float = 0.3) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = (level * np.sin(0.1 * np.arange(int(seconds * rate)))).astype(np.float32)
    return samples


GOOD = file(tone())


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_24"),
        ("OGG", "OPUS"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_every_promised_format_is_understood(container: str, subtype: str) -> None:
    recording = decode(file(tone(), 16_000, container, subtype))
    assert recording.sample_rate == 16_000 and recording.seconds == pytest.approx(2.0, abs=0.1)
    assert recording.samples.dtype == np.float32 and recording.samples.ndim == 1
    assert np.sqrt(np.mean(recording.samples**2)) == pytest.approx(0.212, rel=0.1)


def test_stereo_becomes_the_mean_of_its_channels() -> None:
    recording = decode(file(np.stack([tone(), np.zeros_like(tone())], axis=1)))
    assert recording.channels == 2 and np.max(recording.samples) == pytest.approx(0.15, abs=0.01)


def test_float_samples_beyond_full_scale_are_brought_back_into_range() -> None:
    recording = decode(file(tone(level=4.0), subtype="FLOAT"))
    assert np.max(np.abs(recording.samples)) == pytest.approx(1.0)


def lying_wav() -> bytes:
    """The header of a WAV that claims an hour, with two seconds of samples."""
    data = bytearray(GOOD)
    struct.pack_into("<I", data, 40, 3_600 * 32_000)
    return bytes(data)


BAD = {
    "empty": (b"", "empty"),
    "text": (b"RIFF of something else entirely" * 40, "can't be decoded"),
    "header only": (GOOD[:44], "at least"),
    "half a header": (GOOD[:20], "can't be decoded"),
    "aiff": (file(tone(), container="AIFF"), "AIFF"),
    "too short": (file(tone(0.9)), "at least 1 s"),
    "too long": (file(tone(30.2)), "longer than 30 s"),
    "silent": (file(np.zeros(32_000, np.float32)), "silent"),
    "cancelling channels": (file(np.stack([tone(), -tone()], axis=1)), "silent"),
    "not a number": (file(np.full(32_000, np.nan, np.float32), subtype="FLOAT"), "not numbers"),
    "infinite": (file(np.full(32_000, np.inf, np.float32), subtype="FLOAT"), "not numbers"),
    "telephone of 1920": (file(tone(), 4_000), "4000 samples a second"),
    "too many channels": (file(np.zeros((32_000, 12), np.float32)), "12 channels"),
}


def wav_of_size(riff: int, data: int, subtype: str = "PCM_16", before: bytes = b"", after: bytes = b"") -> bytes:
    """A WAV of two seconds as a recorder leaves it that is killed, or that writes to a pipe."""
    whole = bytearray(file(tone(), subtype=subtype))
    at = whole.index(b"data")
    struct.pack_into("<I", whole, 4, riff)
    struct.pack_into("<I", whole, at + 4, data)
    return bytes(whole[:at] + before + whole[at:] + after)


LAVF = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf60.16.100\0"
SPIKED = {value: np.insert(tone(), 1_000, value).astype(np.float32) for value in (1e30, -5.0, np.nan, np.inf)}

BAD |= {
    "header only, then a chunk": (GOOD[:40] + b"\0\0\0\0" + LAVF, "has 0.00 s"),
    "muted, with an offset": (file(np.full(32_000, 0.02, np.float32)), "silent"),
    "muted, with a drifting offset": (file(np.linspace(-0.05, 0.05, 32_000, dtype=np.float32)), "silent"),
    "a click": (file(np.insert(np.zeros(32_000, np.float32), 9, 1.0)), "silent"),
    "cut off": (file(tone(4.0), container="FLAC")[:-900], "cut off after 3 s"),
    **{
        f"spike of {value}": (file(samples, subtype="FLOAT"), r"1, the first \(.*\) at 0.062 s; cut them out")
        for value, samples in SPIKED.items()
    },
    "a spike beyond float32": (file(np.insert(tone().astype("f8"), 9, 1e300), subtype="DOUBLE"), "not numbers: 1"),
    "m4a": (b"\0\0\0\x1cftypM4A \0\0\2\0" + bytes(90), "an M4A file; .* `ffmpeg -i FILE"),
    "mp4": (b"\0\0\0\x20ftypisom" + bytes(90), "an MP4 file; .* `ffmpeg"),
    "mov": (b"\0\0\0\x14ftypqt  " + bytes(90), "QuickTime"),
    "webm": (b"\x1a\x45\xdf\xa3\x9fB\x82\x84webm" + bytes(90), "WebM file; .* `ffmpeg"),
    "amr": (b"#!AMR\n" + bytes(90), "AMR file; .* `ffmpeg"),
    "aac": (b"\xff\xf1\x50\x80" + bytes(90), "AAC file; .* `ffmpeg"),
    "wma": (bytes.fromhex("3026b2758e66cf11") + bytes(90), "WMA"),
    "wechat": (b"\x02#!SILK_V3" + bytes(90), "WeChat"),
    "web page": (b"\n<!DOCTYPE html><html>", "a web page"),
    "json": (b'{"detail": "not found"}', "a JSON file"),
    "chinese": ("今天天气不错。".encode() * 99, "a text file"),
    "utf-16": ("hello".encode("utf-16"), "a text file"),
    "base64": (b"UklGRiQAAABXQVZFZm10", "Base64"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "zip": (b"PK\x03\x04" + bytes(90), "a ZIP file"),
    "zeros": (bytes(9_000), "zero bytes"),
}


@pytest.mark.parametrize(
    "data",
    [
        *(wav_of_size(riff, size) for riff in (0, 36, 0xFFFFFFFF) for size in (0, 1, 100, 32_000, 0xFFFFFFFF)),
        *(wav_of_size(0, 0, subtype) for subtype in ("PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW")),
        wav_of_size(0, 0, before=LAVF),
        wav_of_size(0xFFFFFFFF, 0xFFFFFFFF, before=LAVF),
        wav_of_size(len(GOOD) - 8, len(GOOD) - 44, after=LAVF),
    ],
)
def test_a_recorder_that_did_not_finish_its_header_has_recorded_all_the_same(data: bytes) -> None:
    assert decode(data).seconds == pytest.approx(2.0, abs=0.001)


def test_a_flac_file_from_a_pipe_is_read_to_its_end() -> None:
    data = bytearray(file(tone(), container="FLAC"))
    data[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples
    data[22:26] = bytes(4)
    assert decode(bytes(data)).seconds == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize(
    "samples",
    [
        tone() * 32_768 / 0.3,
        np.insert(tone(), 9, 3.0),
        tone() + 0.4,
        np.concatenate([np.zeros(128_000, np.float32), tone(0.5)]),
        np.clip(tone() * 50, -1, 1),
    ],
    ids=["in the scale of 16 bits", "a little over full scale", "an offset", "a short word", "clipped"],
)
def test_a_voice_that_is_there_is_taken_and_heard(samples: NDArray[np.float32]) -> None:
    found = decode(file(samples.astype(np.float32), subtype="FLOAT")).samples
    assert np.max(np.abs(found)) <= 1.0
    assert np.sort(np.abs(found - np.median(found)))[-2_000] > 0.05


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recording_is_refused_in_words_that_help(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(BadRecordingError, match=words):
        decode(data)


def test_a_header_that_lies_about_the_length_is_not_believed() -> None:
    assert decode(lying_wav()).seconds == pytest.approx(2.0)


def test_a_small_file_that_unpacks_to_hours_costs_neither_time_nor_memory() -> None:
    bomb = file(np.zeros(3_600 * 16_000, np.int16), container="FLAC")
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(BadRecordingError, match="longer than"):
        decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begun < 10 and peak < 16 << 20


def test_no_damage_to_a_file_gets_past_the_check_as_another_exception() -> None:
    random = np.random.default_rng(7)
    for container, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")):
        original = file(tone(), 16_000, container, subtype)
        for _ in range(25):
            damaged = bytearray(original)
            for _ in range(8):
                damaged[random.integers(len(damaged))] = random.integers(256)
            try:
                decode(bytes(damaged[: random.integers(1, len(damaged) + 1)]))
            except BadRecordingError as error:
                assert str(error)


@pytest.mark.parametrize(
    ("data", "code", "answer"),
    [(GOOD, 0, {"seconds": 2.0, "sample_rate": 16_000, "channels": 1}), (b"noise", 1, None)],
)
def test_the_daemon_can_have_a_recording_checked_in_another_process(data: bytes, code: int, answer: object) -> None:
    command = [sys.executable, "-m", "glmtts.daemon.storage.recordings", "1", "30"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == code
    said = json.loads(done.stdout)
    assert said == answer if answer else "can't be decoded" in said["error"]
