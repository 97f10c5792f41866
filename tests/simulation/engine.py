"""What the engine of a simulated process shares out among its jobs, and the streams that it has made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from glmtts.protocol import worker as wire
from glmtts.protocol.events import Voice

from .rules import Rule, must

if TYPE_CHECKING:
    from .place import Place


def ready(slots: int, memory: wire.Memory, *, repeats: bool) -> wire.Ready:
    """What a process says when it is ready."""
    return wire.Ready(
        engine="fault",
        engine_version="1",
        sample_rates=[24_000],
        voices=[Voice(name="tone")],
        default_voice="tone",
        clones_voices=True,
        slots=slots,
        speeds=True,
        repeats=repeats,
        load_s=0.1,
        warmup_s=0.1,
        memory=memory,
    )


class Engine:
    """The time of one process, and the bytes of its streams."""

    def __init__(self, world: Place) -> None:
        self._world = world
        #: The engine's time that each job took, and when that was last shared out among those at work.
        self._work_s: dict[str, float] = {}
        self._shared_at = world.now
        self._made: dict[str, bytearray] = {}
        #: Chunks that this process has sent of each stream.
        self._sent: dict[str, int] = {}

    def share(self, at_work: Collection[str]) -> None:
        """The time since the last call is that of the jobs at work, in equal parts. Call it before they change."""
        passed_s, self._shared_at = self._world.now - self._shared_at, self._world.now
        for id in at_work:
            self._work_s[id] = self._work_s.get(id, 0.0) + passed_s / len(at_work)

    def took_s(self, id: str, at_work: Collection[str]) -> float:
        """The engine's time that a job took."""
        self.share(at_work)
        return self._work_s.get(id, 0.0)

    def forget(self, id: str) -> None:
        """A job has ended."""
        self._work_s.pop(id, None)
        self._made.pop(id, None)
        self._sent.pop(id, None)

    def stream(self, job: wire.SpeakJob, piece: bytes) -> tuple[wire.AudioChunk, bytes] | None:
        """The next chunk of a stream; None for a piece that an earlier attempt has sent."""
        made = self._made.setdefault(job.job, bytearray())
        sent = job.replay or wire.Replay(0, b"", 0)
        before = len(made)
        made += piece
        if before < sent.size <= len(made):
            must(Rule.ORDER, self._world.scene.repeats, job.job, "goes on in a process that makes other bytes")
            fits = hashlib.sha256(made[: sent.size]).digest() == sent.digest
            must(Rule.ORDER, fits, job.job, "goes on behind a part that was not sent")
        if len(made) <= sent.size:
            return None
        chunks = self._sent.get(job.job, 0)
        self._sent[job.job] = chunks + 1
        chunk = wire.AudioChunk(job=job.job, seq=sent.chunks + chunks, digest=hashlib.sha256(made).digest())
        return chunk, bytes(made[max(before, sent.size) :])
