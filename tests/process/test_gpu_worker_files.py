"""Finished files that a worker puts on disk: outputs that clients asked for, and results that are kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.storage import outputs
from glmtts.protocol.worker import Finished, ResumeJob

from .worker_under_test import DEADLINE_S, Start, WorkerUnderTest, workers


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as begin:
        yield begin


@pytest.fixture
def worker(start: Start) -> WorkerUnderTest:
    worker = start()
    worker.ready()
    return worker


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- outputs


def test_a_finished_file_is_put_where_it_was_asked_for_and_never_over_another(
    worker: WorkerUnderTest, tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    done, body = worker.speak(output=str(path), options={"seconds": 0.2})
    assert done.path == str(path) and body == b"" and done.result is None
    assert sha256(path) == done.sha256
    begun = time.monotonic()
    failed = worker.fail(output=str(path), options={"fault": "sleep", "seconds": 30})
    assert failed.code == "output_exists" and time.monotonic() - begun < 5
    outputs.settle(path, done.job)
    assert names(tmp_path) == ["a.wav"]
    assert worker.fail(output=str(tmp_path / "no" / "a.wav")).code == "output_failed"


@pytest.mark.parametrize("audio_format", ["wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le"])
def test_a_file_whose_news_was_lost_with_the_worker_is_delivered_and_not_spoken_again(
    start: Start, tmp_path: Path, audio_format: str
) -> None:
    path = tmp_path / f"a.{audio_format}"
    wanted: dict[str, Any] = {"output": str(path), "format": audio_format}
    first = start()
    first.ready()
    lost, _ = first.speak(options={"seconds": 1.3}, **wanted)
    first.process.kill()
    assert first.process.wait(DEADLINE_S)
    second = start()
    second.ready()
    # The same job: its id is that of the first of each worker here. What it would speak now takes its time.
    end, seen = second.until_end(second.start(options={"fault": "sleep", "seconds": 60}, **wanted))
    assert isinstance(end, Finished) and end.job == lost.job and len(seen) == 1 and seen[0][1] is None
    assert (end.sha256, end.bytes, end.path) == (sha256(path), path.stat().st_size, str(path))
    assert (end.sample_rate, end.voice, end.synthesis_s) == (lost.sample_rate, lost.voice, 0.0)
    assert end.audio_s == pytest.approx(lost.audio_s, abs=1e-4)
    assert second.fail(**wanted).code == "output_exists"


def test_a_file_of_one_s_own_that_appears_while_it_is_spoken_is_delivered(
    worker: WorkerUnderTest, tmp_path: Path
) -> None:
    """As when the attempt before was only taken for dead."""
    path = tmp_path / "a.wav"
    options = {"seconds": 0.4, "segments": 2}
    name, _ = worker.suspended(lambda: worker.start(output=str(path), options=options))
    outputs.write_new(path, b"by the other attempt", name)
    worker.send(ResumeJob(job=name))
    end, _ = worker.until_end(name)
    assert isinstance(end, Finished) and end.sha256 == sha256(path) and end.bytes == len(b"by the other attempt")


def test_a_file_that_is_no_audio_any_more_is_delivered_all_the_same(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    outputs.write_new(path, b"changed by its owner", "0-1")
    worker = start()
    worker.ready()
    done, _ = worker.speak(output=str(path), format="flac")
    assert done.audio_s == 0.0 and done.sha256 == sha256(path)


# --- results


def test_a_result_is_kept_instead_of_being_sent(worker: WorkerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "0-1.wav"
    path.write_bytes(b"of an earlier attempt")
    sent, body = worker.speak()
    kept, none = worker.speak(result=str(path))
    assert (kept.result, kept.path, none) == (str(path), None, b"")
    assert path.read_bytes() == body and kept.sha256 == sent.sha256 == sha256(path)
    assert names(tmp_path) == [path.name]


def test_a_result_that_can_t_be_kept_is_sent_after_all(worker: WorkerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "no folder" / "0-1.wav"
    path.parent.touch()
    done, body = worker.speak(result=str(path))
    assert done.result is None and hashlib.sha256(body).hexdigest() == done.sha256
    assert done.problem == f"File exists ({path.parent})"
    assert f"can't be written to {path} and is sent instead: File exists" in worker.log.read_text()


def test_a_folder_of_results_that_somebody_has_removed_is_made_anew(worker: WorkerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "gone" / "0-1.wav"
    done, none = worker.speak(result=str(path))
    assert done.result == str(path) and none == b"" and sha256(path) == done.sha256


def test_a_stream_is_also_kept_where_it_is_to_be(worker: WorkerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "0-1.pcm"
    done, sent = worker.speak(format="pcm_s16le", stream=True, result=str(path))
    assert (done.result, path.read_bytes()) == (str(path), sent) and done.chunks > 0
