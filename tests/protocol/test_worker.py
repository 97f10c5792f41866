"""The workers' wire: no bytes from a worker end the supervisor or fill its memory."""

from __future__ import annotations

import resource
from typing import get_args

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
    worker.Beats(jobs=[worker.JobProgress("j", 1), worker.JobProgress("k", 2, 9, 0.5)]),
    worker.SegmentDone(job="j", segment=1, segments=2, audio_s=0.5),
    worker.AudioChunk(job="j", seq=0, digest=b"\0\xff"),
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
    worker.SpeakJob(
        job="j", text="a", voice=None, format="wav", sample_rate=None, stream=False, seed=0, options={"rate": 100}
    ),
    worker.SpeakJob(
        job="j",
        text="a",
        voice=None,
        format="wav",
        sample_rate=None,
        stream=True,
        seed=0,
        options={},
        replay=worker.Replay(9, b"\0\xff", 2),
    ),
    worker.AddText(job="j", text="a", last=True),
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


READY = b"\x82\xa4type\xa5ready"
JOB = b"\x82\xa4type\xa3job"
#: Four thousand million elements, pairs or bytes, of which none follows; an extension; nesting without an end.
LENGTHS = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
HOSTILE = [*LENGTHS, b"\xc9\xff\xff\xff\xff\x01", b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\xdd\x10\0\0\0" * 50]


BEFORE = [b"", b"\x81\xa4type", READY + b"\xacsample_rates", READY + b"\xa6voices", READY + b"\xa7unknown"]


@pytest.mark.parametrize("before", [*BEFORE, JOB + b"\xa7options", JOB + b"\xa7options\x81\xa1a"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:6].hex())
def test_a_length_that_lies_takes_no_memory_and_is_a_protocol_error(before: bytes, value: bytes) -> None:
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for decode in (decode_from_worker, decode_to_worker):
        with pytest.raises(WorkerProtocolError) as caught:
            decode(before + value)
        assert 0 < len(str(caught.value)) <= 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 8 * 1024


TYPES: list[object] = [None, 1, ["hello"], {"a": 1}, b"hello", "nop"]


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x05", b"\x80", *(msgpack.packb({"type": one}) for one in TYPES)])
def test_anything_but_a_message_is_a_protocol_error(header: bytes) -> None:
    for decode in (decode_from_worker, decode_to_worker):
        with pytest.raises(WorkerProtocolError):
            decode(header)


def only_protocol_errors(header: bytes) -> None:
    for decode in (decode_from_worker, decode_to_worker):
        try:
            decode(header)
        except WorkerProtocolError as error:
            assert len(str(error)) <= 200


@settings(max_examples=300)
@given(st.sampled_from([*FROM_WORKER, *TO_WORKER]), st.data())
def test_a_damaged_message_raises_nothing_but_protocol_errors(
    message: worker.WorkerMessage | worker.SupervisorMessage, data: st.DataObject
) -> None:
    header = bytearray(worker.encode(message))
    header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    only_protocol_errors(bytes(header))
    only_protocol_errors(bytes(header[: data.draw(st.integers(0, len(header)))]))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(header: bytes) -> None:
    only_protocol_errors(header)
