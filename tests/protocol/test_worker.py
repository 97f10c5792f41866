"""The wire to the workers: what a damaged worker sends never ends the supervisor."""

from __future__ import annotations

from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.protocol import worker
from glmtts.protocol.worker import WorkerProtocolError, decode_from_worker, decode_to_worker

MEMORY = worker.Memory(rss=1)
FROM_WORKER: list[worker.WorkerMessage] = [
    worker.Hello(token="t", pid=1, started=2, python="3.11"),
    worker.Ready(
        engine="espeak",
        engine_version="1",
        sample_rates=[24_000],
        voices=[],
        default_voice="en",
        clones_voices=False,
        slots=1,
        load_s=0.1,
        warmup_s=0.1,
        memory=MEMORY,
    ),
    worker.Beat(job="j", done=1, expected=None),
    worker.SegmentDone(job="j", segment=1, segments=2, audio_s=0.5),
    worker.AudioChunk(job="j", seq=0),
    worker.Finished(
        job="j",
        sample_rate=24_000,
        audio_s=1.0,
        synthesis_s=0.1,
        first_audio_s=0.1,
        voice="en",
        sha256="0",
        chunks=0,
        bytes=3,
        path=None,
        memory=MEMORY,
    ),
    worker.Failed(job="j", code="oom", message="m"),
    worker.Suspended(job="j", memory=MEMORY),
    worker.Checked(check="c1"),
    worker.Trimmed(memory=MEMORY),
    worker.Bye(reason="asked to"),
]
TO_WORKER: list[worker.SupervisorMessage] = [
    worker.Job(
        job="j", text="a", voice=None, format="wav", sample_rate=None, stream=False, seed=0, options={"rate": 100}
    ),
    worker.CancelJob(job="j"),
    worker.SuspendJob(job="j"),
    worker.ResumeJob(job="j"),
    worker.Check(check="c1"),
    worker.Trim(),
    worker.StopWorker(),
]


def test_every_message_of_a_worker_arrives_as_it_was_sent() -> None:
    assert {type(message) for message in FROM_WORKER} == set(get_args(worker.WorkerMessage))
    for message in FROM_WORKER:
        assert decode_from_worker(worker.encode(message)) == message


def test_every_message_to_a_worker_arrives_as_it_was_sent() -> None:
    assert {type(message) for message in TO_WORKER} == set(get_args(worker.SupervisorMessage))
    for message in TO_WORKER:
        assert decode_to_worker(worker.encode(message)) == message


@pytest.mark.parametrize("message", TO_WORKER)
def test_a_worker_can_not_speak_as_the_supervisor(message: worker.SupervisorMessage) -> None:
    with pytest.raises(WorkerProtocolError):
        decode_from_worker(worker.encode(message))


@pytest.mark.parametrize(
    "header",
    [
        *[b"", b"\xc1", b"\x05", b"\x91\x01", b"\x80", b"\x91" * 5_000, b"\xdf\xff\xff\xff\xff"],
        *[b"\x81\xa4type\x90", b"\x81\xa4type\xa5hello", b"\x81\xa4type\xa3nop"],
        b"\x81\xa4type" + b"\x91" * 1_000 + b"\x01",
    ],
)
def test_nonsense_of_a_worker_is_a_protocol_error(header: bytes) -> None:
    with pytest.raises(WorkerProtocolError) as caught:
        decode_from_worker(header)
    assert 0 < len(str(caught.value)) <= 200


@settings(max_examples=300)
@given(st.sampled_from(FROM_WORKER), st.data())
def test_damaged_messages_of_a_worker_raise_nothing_but_protocol_errors(message: Any, data: st.DataObject) -> None:
    header = bytearray(worker.encode(message))
    header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(header), bytes(header[: data.draw(st.integers(0, len(header)))])):
        try:
            decode_from_worker(damaged)
        except WorkerProtocolError:
            pass


@given(st.binary(max_size=200))
def test_arbitrary_bytes_of_a_worker_raise_nothing_but_protocol_errors(header: bytes) -> None:
    try:
        decode_from_worker(header)
    except WorkerProtocolError:
        pass


def test_the_type_must_be_a_word() -> None:
    for wrong in (None, 1, ["hello"], {"a": 1}, b"hello"):
        with pytest.raises(WorkerProtocolError):
            decode_from_worker(msgpack.packb({"type": wrong}))
