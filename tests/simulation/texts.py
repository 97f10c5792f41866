"""What there is to say in the simulation, and how long that takes: a text's length tells, as far as it can."""

from __future__ import annotations

from glmtts.protocol import worker as wire

from .accidents import Scene

#: Characters of a segment.
SEGMENT_CHARS = 20
#: Seconds that one takes at least, and on average on top of that; how much less all takes where jobs are brief.
SEGMENT_S = (0.02, 0.06)
_BRIEF = 0.02
#: The longest that a message is under way.
WIRE_S = 0.005


def pace(scene: Scene) -> float:
    """How long everything takes, in parts of the usual."""
    return _BRIEF if scene.brief else 1.0


def takes_s(text: str, scene: Scene) -> float:
    """Seconds that a text takes, on average."""
    return segments_of(text) * sum(SEGMENT_S) * pace(scene)


def segments_of(text: str) -> int:
    """How many segments a text has: its length says so, as far as it can."""
    return 1 + len(text) // SEGMENT_CHARS


def name_of(text: str) -> str:
    """What tells a text from others: the first sentence of one that comes in pieces."""
    return text.partition(". ")[0]


def audio(job: wire.SpeakJob, number: int, by: int = 0) -> bytes:
    """Audio that says whose it is, and in which process it was made where that makes a difference."""
    size = 20_000 if number == 0 else 100
    return f"{job.job}|{name_of(job.text)}|{number}|{by or ''}".encode().ljust(size, b".")
