"""The tasks of a text process, their results, and the frames in which both travel."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

_LENGTH_BYTES = 4


class Read(Struct, frozen=True, tag=True):
    """Normalise a text, or a part of one. The result is a string."""

    text: str


class Split(Struct, frozen=True, tag=True):
    """Cut a normalised text into segments. The result is a list of strings."""

    normalised: str


class Prepare(Struct, frozen=True, tag=True):
    """Normalise a segment again, find its phonemes, and tokenise it. The result is Prepared."""

    segment: str
    use_phoneme: bool


Task = Read | Split | Prepare


class Prepared(Struct, frozen=True, tag=True):
    """A segment as the models need it.

    ``text``: as it was cut; ``normalised``: as upstream normalises it again before it speaks; ``spoken``: with the
    readings of dictionaries, and with phonemes if they were asked for; ``tokens``: the text tokens of that.
    """

    text: str
    normalised: str
    spoken: str
    tokens: list[int]


class Refused(Struct, frozen=True, tag=True):
    """The fields of an EngineError, in place of a result."""

    code: str
    message: str
    quotes: bool


class Hello(Struct, frozen=True, tag=True):
    """The first frame of a text process, and of their template once it is loaded."""

    pid: int


class NotLoaded(Struct, frozen=True, tag=True):
    """The template can't load upstream; ``setting`` if a setting is wrong."""

    problem: str
    setting: bool


class Result(Struct, frozen=True, tag=True):
    """The result of a Read or Split."""

    value: str | list[str]


Message = Task | Prepared | Refused | Hello | NotLoaded | Result
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def frame(message: Message) -> bytes:
    """A message as bytes, its length first. Raises UnicodeEncodeError for a lone surrogate."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Frames:
    """Takes messages out of the bytes of a stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Any]:
        """The messages that ``chunk`` completes. Raises msgspec.DecodeError."""
        buffer = self._buffer
        buffer += chunk
        found = []
        while len(buffer) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(buffer[:_LENGTH_BYTES], "big")
            if len(buffer) < end:
                break
            found.append(_DECODER.decode(bytes(buffer[_LENGTH_BYTES:end])))
            del buffer[:end]
        return found
