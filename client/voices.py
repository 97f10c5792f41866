"""Answers about voices: one that was added, and the recording of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from msgspec import Struct

from glmtts.protocol.events import Result, VoiceSampleAnswer

from .exchange import Exchange
from .files import write_whole


class AddedVoice(Struct, frozen=True, kw_only=True):
    """A voice that the daemon keeps now. ``created`` is seconds since 1970, UTC; ``warning``: words, or empty."""

    name: str
    seconds: float
    created: float
    warning: str = ""

    @classmethod
    def of(cls, answer: Result) -> AddedVoice:
        """From the daemon's answer."""
        values = answer.values
        return cls(
            name=str(values.get("name", "")),
            seconds=float(values.get("seconds", 0.0)),
            created=float(values.get("created", 0.0)),
            warning=str(values.get("warning", "")),
        )


class VoiceSample(Struct, frozen=True, kw_only=True):
    """The recording of a voice: ``audio`` is a file in ``format``, ``text`` what is said in it."""

    name: str
    owner: str
    format: str
    text: str
    seconds: float
    audio: bytes

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recording to ``path``, whole or not at all, over an existing file. Raises OSError."""
        write_whole(Path(path), self.audio)
        return Path(path)

    @classmethod
    def of(cls, exchange: Exchange) -> VoiceSample:
        """From the daemon's answer. Raises the failure of the request."""
        answer = exchange.result(VoiceSampleAnswer)
        return cls(
            name=answer.name,
            owner=answer.owner,
            format=answer.format,
            text=answer.text,
            seconds=answer.seconds,
            audio=exchange.body,
        )


def keys_of(name: str, text: str, *, description: str, language: str, consent: bool, replace: bool) -> dict[str, Any]:
    """The keys of ``voice_add``; those with their default are left out."""
    return {
        "name": name,
        "text": text,
        "description": description or None,
        "language": language or None,
        "consent": consent or None,
        "replace": replace or None,
    }
