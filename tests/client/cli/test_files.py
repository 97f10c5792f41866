"""Output files: whole or not there, and WAV headers that every reader takes."""

from __future__ import annotations

import io
import os
import stat
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from glmtts.client.cli.ui.sinks import RawSink, WavSink
from glmtts.client.cli.ui.wav import wav_header
from glmtts.client.files import AtomicFile, write_whole

SAMPLES = np.arange(-300, 300, dtype="<i2")


def test_a_file_that_could_not_be_finished_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), AtomicFile(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.wav", b"x")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.wav").stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    link = tmp_path / "link.wav"
    link.symlink_to(tmp_path / "real.wav")
    write_whole(link, b"x")
    assert link.is_symlink()
    assert (tmp_path / "real.wav").read_bytes() == b"x"
    write_whole(Path("/dev/null"), b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_named_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"speech")
    reader.join(10)
    assert read == [b"speech"]


def test_a_folder_that_is_not_there_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        write_whole(tmp_path / "no" / "a.wav", b"x")
    assert raised.value.filename == str(tmp_path / "no" / "a.wav")


def test_a_streamed_wav_is_as_long_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with WavSink(path, is_float=False) as sink:
        sink.start(24_000, 1)
        for part in np.split(SAMPLES, 6):
            sink.write(part.tobytes())
        sink.finish()
    with wave.open(str(path)) as found:
        assert (found.getframerate(), found.getnchannels(), found.getsampwidth()) == (24_000, 1, 2)
        assert found.getnframes() == len(SAMPLES)
        assert found.readframes(-1) == SAMPLES.tobytes()
    assert int.from_bytes(path.read_bytes()[4:8], "little") == path.stat().st_size - 8


def test_a_streamed_wav_of_float_samples_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = np.linspace(-1, 1, 99, dtype="<f4")
    with WavSink(path, is_float=True) as sink:
        sink.start(16_000, 1)
        sink.write(samples.tobytes())
        sink.finish()
    found, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    assert np.array_equal(found, samples)


def test_a_wav_in_a_pipe_says_that_its_length_is_unknown() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    with WavSink(pipe, is_float=False) as sink:
        sink.start(24_000, 1)
        sink.write(SAMPLES.tobytes())
        sink.finish()
    content = pipe.getvalue()
    assert content[4:8] == content[40:44] == b"\xff\xff\xff\xff"
    assert content[44:] == SAMPLES.tobytes()


def test_a_wav_appended_to_a_file_does_not_write_its_header_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before")
    with path.open("ab") as file, WavSink(file, is_float=False) as sink:
        sink.start(24_000, 1)
        sink.write(SAMPLES.tobytes())
        sink.finish()
    assert path.read_bytes()[6 + 44 :] == SAMPLES.tobytes()


def test_a_stream_of_samples_broken_off_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RawSink(tmp_path / "a.pcm") as sink:
        sink.start(24_000, 1)
        sink.write(b"ab")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_wav_cannot_say_becomes_unknown() -> None:
    assert wav_header(48_000, 1, 2, 5 * 2**30, is_float=False)[40:44] == b"\xff\xff\xff\xff"
