"""A real worker process over a real ROUTER socket: what the supervisor relies on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from glmtts.protocol import exit_codes
from glmtts.protocol.worker import (
    AudioChunk,
    Bye,
    CancelJob,
    Failed,
    Finished,
    Hello,
    Ready,
    SegmentDone,
    StopWorker,
    Trim,
    Trimmed,
    WorkerProtocolError,
)

from ..fake_gpu.fake_gpu import FakeGpus
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


def tone_file(seconds: float = 2.0, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(int(seconds * rate)) * 0.1), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


# --- start and end


def test_the_supervisor_knows_its_worker_by_token_pid_and_start_time(start: Start) -> None:
    worker = start()
    hello = worker.expect(Hello)
    stat = Path(f"/proc/{worker.process.pid}/stat").read_text()
    assert (hello.token, hello.pid) == (worker.token, worker.process.pid)
    assert hello.started == int(stat.rpartition(")")[2].split()[19])
    ready = worker.expect(Ready)
    assert ready.engine == "fault" and ready.default_voice == "tone" and ready.clones_voices
    assert ready.sample_rates == [24_000, 32_000]
    assert ready.memory.rss > 10 << 20


def test_the_token_does_not_leak_to_what_the_engine_starts() -> None:
    probe = (
        "import os; from glmtts.daemon.gpu_worker import take_config; "
        "take_config(os.environ); import subprocess; subprocess.run(['env'])"
    )
    config = {"name": "w", "endpoint": "", "token": "secret-token", "daemon_pid": 1, "lifeline_fd": None, "engine": ""}
    environment = {**os.environ, "GLMTTS_WORKER": json.dumps(config)}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert "PATH" in done.stdout and "secret-token" not in done.stdout


def test_a_stopped_worker_finishes_its_job_and_says_goodbye(worker: WorkerUnderTest) -> None:
    name = worker.start(options={"seconds": 0.4, "rtf": 0.5})
    worker.send(StopWorker())
    end, _ = worker.until_end(name)
    assert isinstance(end, Finished)
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.STOPPED


def test_sigterm_ends_an_idle_worker(worker: WorkerUnderTest) -> None:
    worker.process.send_signal(signal.SIGTERM)
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.STOPPED


def test_sigterm_ends_a_job_at_its_next_boundary(worker: WorkerUnderTest) -> None:
    name = worker.start(options={"fault": "sleep", "seconds": 60})
    worker.moving()
    worker.process.send_signal(signal.SIGTERM)
    end, _ = worker.until_end(name)
    assert isinstance(end, Failed) and end.code == "cancelled" and end.fatal
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.STOPPED


def test_ctrl_c_in_the_terminal_leaves_the_worker_to_the_daemon(worker: WorkerUnderTest) -> None:
    worker.process.send_signal(signal.SIGINT)
    worker.speak()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"engine": "nonesuch"}, "no such engine"),
        ({"engine": "espeak", "python_path": "", "warmup_text": "hello", "default_sample_rate": 0}, "Error"),
    ],
)
def test_an_engine_that_can_t_start_is_named_in_the_goodbye(start: Start, config: dict[str, Any], words: str) -> None:
    worker = start(**config)
    worker.expect(Hello)
    assert words in worker.expect(Bye).reason
    assert worker.process.wait(DEADLINE_S) == exit_codes.ENGINE_UNAVAILABLE


def test_a_crash_while_loading_is_a_crash(start: Start) -> None:
    worker = start(engine_settings={"start": "crash"})
    worker.expect(Hello)
    assert worker.process.wait(DEADLINE_S) == -signal.SIGSEGV


def test_a_supervisor_of_another_version_is_told_so(worker: WorkerUnderTest) -> None:
    worker.router.send_multipart([worker.identity, b"\x81\xa4type\xa9hereafter"])
    assert "hereafter" in worker.expect(Bye).reason
    assert worker.process.wait(DEADLINE_S) == exit_codes.PROTOCOL


def test_started_by_hand_it_says_who_starts_it() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GLMTTS_WORKER"}
    command = [sys.executable, "-m", "glmtts.daemon.gpu_worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.USAGE and "glmttsd" in done.stderr and "Traceback" not in done.stderr


# --- the lifeline


@pytest.mark.parametrize("state", ["idle", "hang_gil", "hang", "loading"])
def test_no_worker_outlives_its_daemon(start: Start, state: str) -> None:
    """As when the daemon is killed: its write end of the pipe closes, and nobody says stop."""
    worker = start(engine_settings={"start": "hang"} if state == "loading" else {})
    if state == "loading":
        worker.expect(Hello)
    else:
        worker.ready()
    if state.startswith("hang"):
        name = worker.start(
            options={"fault": state, "after_segments": 1, "seconds": 0.2}, stream=True, format="pcm_s16le"
        )
        assert worker.expect(AudioChunk).job == name
        worker.expect(SegmentDone)
    os.close(worker.write_end)
    worker.write_end = -1
    assert worker.process.wait(DEADLINE_S) == -signal.SIGKILL


def test_a_daemon_that_ended_before_the_worker_was_tied_to_it_is_noticed() -> None:
    read, write = os.pipe()
    os.close(write)
    config = {"name": "w", "endpoint": "ipc:///nowhere", "token": "", "daemon_pid": os.getpid(), "lifeline_fd": read}
    environment = {**os.environ, "GLMTTS_WORKER": json.dumps({**config, "engine": "fault"})}
    command = [sys.executable, "-m", "glmtts.daemon.gpu_worker"]
    done = subprocess.run(command, env=environment, pass_fds=[read], timeout=DEADLINE_S, check=False)
    os.close(read)
    assert done.returncode == exit_codes.DAEMON_GONE


# --- jobs


def test_a_job_s_file_is_whole_and_its_figures_are_true(worker: WorkerUnderTest) -> None:
    done, wav = worker.speak("hello", options={"seconds": 0.2})
    samples, rate = soundfile.read(io.BytesIO(wav))
    assert (len(samples), rate) == (4_800, 24_000)
    assert done.audio_s == pytest.approx(0.2)
    assert done.sha256 == hashlib.sha256(wav).hexdigest()
    assert (done.bytes, done.chunks, done.path, done.voice) == (len(wav), 0, None, "tone")
    assert 0 < done.first_audio_s <= done.synthesis_s
    assert done.memory.rss > 0


def test_a_stream_comes_in_pieces_and_adds_up_to_the_file(worker: WorkerUnderTest) -> None:
    options = {"seconds": 3.0, "segments": 3}
    _, whole = worker.speak("hello", format="pcm_s16le", options=options)
    name = worker.start("hello", format="pcm_s16le", stream=True, options=options)
    end, seen = worker.until_end(name)
    assert isinstance(end, Finished)
    chunks = [(message, audio) for message, audio in seen if isinstance(message, AudioChunk)]
    assert [message.seq for message, _ in chunks] == list(range(end.chunks)) and end.chunks > 3
    streamed = b"".join(audio or b"" for _, audio in chunks)
    assert streamed == whole and seen[-1][1] is None
    assert end.sha256 == hashlib.sha256(whole).hexdigest() and end.bytes == len(whole)
    boundaries = [message for message, _ in seen if isinstance(message, SegmentDone)]
    assert [(boundary.segment, boundary.segments) for boundary in boundaries] == [(1, 3), (2, 3), (3, 3)]
    assert [boundary.audio_s for boundary in boundaries] == pytest.approx([1.0, 2.0, 3.0])


def test_chunks_stay_small_enough_for_every_buffer_on_the_way(worker: WorkerUnderTest) -> None:
    name = worker.start(format="pcm_f32le", stream=True, sample_rate=48_000, options={"seconds": 2.0})
    _, seen = worker.until_end(name)
    sizes = [len(audio or b"") for message, audio in seen if isinstance(message, AudioChunk)]
    assert max(sizes) <= 64 * 1024 and sum(sizes) == 2 * 48_000 * 4


@pytest.mark.parametrize(("rate", "audio_format"), [(8_000, "wav"), (44_100, "flac"), (32_000, "wav"), (None, "ogg")])
def test_audio_has_the_rate_that_was_asked_for(worker: WorkerUnderTest, rate: int | None, audio_format: str) -> None:
    done, data = worker.speak(sample_rate=rate, format=audio_format, options={"seconds": 1.0})
    samples, file_rate = soundfile.read(io.BytesIO(data))
    assert file_rate == done.sample_rate == (rate or 24_000)
    assert len(samples) == pytest.approx(file_rate, abs=2)


def test_a_recording_changes_the_voice(worker: WorkerUnderTest, tmp_path: Path) -> None:
    own, _ = worker.speak("hello")
    prompt, _ = worker.speak("hello", tone_file(), prompt_text="tone")
    assert own.sha256 != prompt.sha256
    (tmp_path / "anna.wav").write_bytes(tone_file())
    registered, _ = worker.speak("hello", voice="anna", recording=str(tmp_path / "anna.wav"), prompt_text="tone")
    assert registered.sha256 == prompt.sha256 and registered.voice == "anna"


@pytest.mark.parametrize(
    ("code", "words", "job"),
    [
        ("bad_request", "options.mib", {"options": {"fault": "leak_ram", "mib": -1}}),
        ("bad_request", "options", {"options": {"nonesuch": 1}}),
        ("bad_request", "leak_vram", {"options": {"fault": "leak_vram"}}),
        ("bad_request", "sample_rate", {"format": "ogg", "sample_rate": 44_100}),
        ("bad_audio", "can't be decoded", {"body": b"no recording at all", "prompt_text": "x"}),
        ("bad_audio", "at least", {"body": tone_file(0.1), "prompt_text": "x"}),
        ("voice_not_found", "tone-high", {"voice": "nobody"}),
        ("voice_not_found", "anna", {"voice": "anna", "recording": "/nowhere/anna.wav"}),
        ("synthesis_failed", "RuntimeError", {"options": {"fault": "raise"}}),
    ],
)
def test_a_job_that_can_t_be_done_says_why_and_harms_no_other(
    worker: WorkerUnderTest, code: str, words: str, job: dict[str, Any]
) -> None:
    if "leak_vram" in words and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU to leak from")
    failed = worker.fail(**job)
    assert failed.code == code and words in failed.message and not failed.fatal
    worker.speak()


def test_a_cancelled_job_ends_early_and_the_next_one_is_spoken(worker: WorkerUnderTest) -> None:
    name = worker.start(options={"fault": "sleep", "seconds": 60})
    worker.moving()
    worker.send(CancelJob(job=name))
    end, _ = worker.until_end(name)
    assert isinstance(end, Failed) and end.code == "cancelled" and not end.fatal
    worker.speak()


def test_jobs_that_wait_in_the_worker_are_spoken_in_order_unless_cancelled(worker: WorkerUnderTest) -> None:
    names = [worker.start(options={"seconds": 0.2, "rtf": 0.5}) for _ in range(3)]
    worker.send(CancelJob(job=names[1]))
    worker.send(CancelJob(job="long-gone"))
    ends = [worker.until_end(name)[0] for name in names]
    assert [type(end) for end in ends] == [Finished, Failed, Finished]


def test_a_slow_supervisor_holds_the_worker_back_and_can_still_cancel(worker: WorkerUnderTest) -> None:
    name = worker.start(format="pcm_s16le", stream=True, sample_rate=48_000, options={"seconds": 3_600})
    worker.expect(AudioChunk)
    before = rss_of(worker)
    worker.send(CancelJob(job=name))
    end, seen = worker.until_end(name)
    assert isinstance(end, Failed) and end.code == "cancelled"
    assert sum(len(audio or b"") for _, audio in seen) < 64 << 20
    assert rss_of(worker) - before < 64 << 20
    worker.speak()


def test_a_job_that_moves_says_so_and_not_more_often_than_needed(worker: WorkerUnderTest) -> None:
    name = worker.start(options={"seconds": 0.7, "rtf": 1.0})
    worker.until_end(name)
    assert 2 <= len(worker.beats) <= 8 and all(beat.job == name and beat.expected for beat in worker.beats)


def test_trim_is_answered_with_what_the_worker_holds(worker: WorkerUnderTest) -> None:
    worker.send(Trim())
    assert worker.expect(Trimmed).memory.rss > 0


def test_an_idle_worker_uses_no_processor_time(worker: WorkerUnderTest) -> None:
    worker.speak()

    def ticks() -> int:
        stat = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    def switches() -> int:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary_ctxt"))

    before = ticks(), switches()
    assert not worker.router.poll(1_000)
    assert ticks() - before[0] <= 1 and switches() - before[1] <= 3


# --- faults


@pytest.mark.parametrize(
    ("fault", "code"),
    [("exit", 3), ("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("kill", -signal.SIGKILL)],
)
def test_every_way_to_die_is_a_real_death_after_the_segments_before_it(
    worker: WorkerUnderTest, fault: str, code: int
) -> None:
    options = {"fault": fault, "after_segments": 2, "seconds": 0.3}
    worker.start(format="pcm_s16le", stream=True, options=options)
    for _ in range(2):
        worker.expect(AudioChunk)
        worker.expect(SegmentDone)
    assert worker.process.wait(DEADLINE_S) == code
    assert not worker.router.poll(200)


def test_out_of_memory_is_told_and_ends_the_process(worker: WorkerUnderTest) -> None:
    failed = worker.fail(options={"fault": "oom"})
    assert failed.code == "out_of_memory" and failed.fatal and failed.memory
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.OUT_OF_MEMORY


# --- with a GPU: the fake one, which the driver's callers can't tell from a real one


@pytest.fixture
def gpus(fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    for name, value in fake_gpus.environment().items():
        monkeypatch.setenv(name, value)
    return fake_gpus


def test_a_job_that_exhausts_the_gpu_ends_its_worker_and_the_gpu_is_free_for_the_next(
    start: Start, gpus: FakeGpus
) -> None:
    worker = start(engine_settings={"vram_mib": 1_000})
    assert worker.ready().memory.torch_allocated == 1_000 << 20
    assert gpus.held_by(worker.process.pid) == 1_300 << 20
    failed = worker.fail(options={"fault": "oom_vram"})
    assert failed.code == "out_of_memory" and failed.fatal and "CUDA out of memory" in failed.message
    assert failed.memory and failed.memory.torch_reserved and failed.memory.torch_reserved > 24_000 << 20
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.OUT_OF_MEMORY
    assert gpus.used(0) == 0
    worker = start(engine_settings={"vram_mib": 1_000})
    worker.ready()
    worker.speak()


def test_a_broken_gpu_context_is_told_and_ends_the_process(start: Start, gpus: FakeGpus) -> None:
    worker = start(engine_settings={"vram_mib": 1_000})
    worker.ready()
    failed = worker.fail(options={"fault": "illegal_access"})
    assert failed.code == "cuda_context" and failed.fatal and "illegal memory access" in failed.message
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.CUDA_CONTEXT
    assert gpus.used(0) == 0


def test_a_model_that_finds_no_room_on_the_gpu_says_that_it_was_memory(start: Start, gpus: FakeGpus) -> None:
    gpus.take(0, 24_000, pid=4711)
    worker = start(engine_settings={"vram_mib": 1_000})
    worker.expect(Hello)
    assert "out of memory" in worker.expect(Bye).reason
    assert worker.process.wait(DEADLINE_S) == exit_codes.OUT_OF_MEMORY


def test_garbage_reaches_the_supervisor_as_garbage(worker: WorkerUnderTest) -> None:
    worker.start(options={"fault": "garbage"})
    for _ in range(3):
        with pytest.raises(WorkerProtocolError):
            worker.receive()


def test_a_flood_on_stdout_does_not_disturb_the_wire(worker: WorkerUnderTest) -> None:
    worker.speak(options={"fault": "flood_stdout"})
    assert worker.log.stat().st_size > 4 << 20


# --- speech


def test_speech_comes_out_of_a_worker_with_the_embedded_engine(start: Start) -> None:
    worker = start(engine="espeak", warmup_text="你好。")
    ready = worker.ready()
    assert ready.default_voice == "auto" and not ready.clones_voices and ready.sample_rates == [22_050]
    done, wav = worker.speak("今天天气不错。Hello world.")
    samples, rate = soundfile.read(io.BytesIO(wav))
    assert rate == 24_000 and 2.0 < done.audio_s < 5.0 and float(np.sqrt(np.mean(samples**2))) > 0.02
    _, streamed = worker.speak("今天天气不错。Hello world.", stream=True, format="pcm_s16le")
    assert streamed == wav[44:]
    failed = worker.fail("hello", tone_file(), prompt_text="x")
    assert failed.code == "bad_request" and "does not clone" in failed.message
    assert worker.fail("hello", b"noise", prompt_text="x").code == "bad_audio"
    long = worker.start("今天天气不错，" * 2_000, stream=True, format="pcm_s16le")
    worker.expect(AudioChunk)
    worker.send(CancelJob(job=long))
    end, _ = worker.until_end(long)
    assert isinstance(end, Failed) and end.code == "cancelled"
    again, _ = worker.speak("今天天气不错。Hello world.")
    assert again.sha256 == done.sha256


def rss_of(worker: WorkerUnderTest) -> int:
    return int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]) * 4_096
