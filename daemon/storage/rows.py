"""Rows of the journal as bytes and back: requests and events are MessagePack, plain values are columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from glmtts.protocol.audio_formats import AudioFormat
from glmtts.protocol.codec import encode
from glmtts.protocol.events import Done, Error
from glmtts.protocol.requests import JobState, Synthesize

from ..core.effects import JournalEnd
from ..core.inputs import JournalRow
from .results import Results
from .timeline import Timeline

#: The request of an ended job is cut if it has more bytes: to this many characters of its text.
_LARGE_REQUEST, _SHORT = 1_000, 200

_requests = msgspec.msgpack.Decoder(Synthesize)
_events: msgspec.msgpack.Decoder[Done | Error] = msgspec.msgpack.Decoder(Done | Error)

COLUMNS = (
    "job, client, user, request, content, text_length, format, sample_rate, created, deadline_at, attempts, state,"
    " event, result"
)


class _Noted(Struct, kw_only=True):
    """The columns of a row that hold plain values, with types, which SQLite does not enforce."""

    job: str
    client: str
    user: str
    content: str
    text_length: int
    format: AudioFormat
    sample_rate: int | None
    created: float
    deadline_at: float | None
    attempts: int
    state: JobState
    result: str


class UnreadableRowError(Exception):
    """A row that this version can't read; the others are unaffected."""


def read(columns: Sequence[Any], timeline: Timeline, results: Results) -> JournalRow:
    """A row by its :data:`COLUMNS`. Raises UnreadableRowError."""
    try:
        values = dict(zip(COLUMNS.split(", "), columns, strict=True))
        request, event = values.pop("request"), values.pop("event")
        noted = msgspec.structs.asdict(msgspec.convert(values, _Noted))
        now, created, deadline_at = timeline.now(), noted.pop("created"), noted.pop("deadline_at")
        noted["result"] = results.path(noted["result"])
        return JournalRow(
            request=_requests.decode(request),
            event=None if event is None else _events.decode(event),
            created=timeline.date(created),
            age_s=max(0.0, now - created),
            deadline_in_s=None if deadline_at is None else deadline_at - now,
            **noted,
        )
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise UnreadableRowError(f"the journal's row of job {text(columns[0])} can't be read: {error}") from None


def shortened(request: bytes) -> bytes | None:
    """A long request of an ended job without most of its text; None for any other.

    Any client could fill the disk with the texts of ended jobs.
    """
    if len(request) <= _LARGE_REQUEST:
        return None
    try:
        known = _requests.decode(request)
    except msgspec.MsgspecError:
        return None
    return encode(msgspec.structs.replace(known, text=known.text[:_SHORT], options={}, prompt=UNSET))


def text(value: object) -> str:
    """A value of any type as words."""
    return value if isinstance(value, str) else repr(value)[:64]


def encoded(end: JournalEnd) -> bytes:
    """The last event of a job, as its row has it."""
    try:
        return encode(end.event)
    except UnicodeEncodeError:
        # A message of an engine that is not Unicode must not keep the end from being noted.
        fields = msgspec.structs.asdict(end.event)
        words = {key: value for key, value in fields.items() if isinstance(value, str)}
        clean = {key: word.encode("utf-8", "backslashreplace").decode() for key, word in words.items()}
        return encode(msgspec.structs.replace(end.event, **clean))
