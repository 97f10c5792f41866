"""Which voices a client can name, and which recording a job with one of them takes."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from glmtts.protocol.events import Voice
from glmtts.protocol.requests import Synthesize

from ..context import Context
from ..inputs import StoredVoice
from ..workers.pool import Pool
from .own_voices import OwnVoices, in_words


class Voices:
    """Owns the recorded voices: those for all, by name, and those of single clients. The engine's are the pool's.

    A client's own voice comes first, then the engine's, then the one for all.
    """

    def __init__(self, context: Context, pool: Pool, stored: Iterable[StoredVoice]) -> None:
        self._context = context
        self._pool = pool
        stored = list(stored)
        self.shared = {voice.name: voice for voice in stored if not voice.owner}
        self.own = OwnVoices(voice for voice in stored if voice.owner)

    def find(self, client: str, name: str) -> StoredVoice | None:
        """The recorded voice that this name means for a client; None for an engine's voice, or none."""
        return self.own.find(client, name) or self._for_all(name)

    def _for_all(self, name: str) -> StoredVoice | None:
        return None if name in self._pool.engine_voices else self.shared.get(name)

    def recording_of(self, client: str, request: Synthesize) -> StoredVoice | None:
        """The recorded voice that a request is spoken with; None for a prompt, an engine's voice, or none."""
        if request.prompt is not UNSET:
            return None
        if request.voice is not UNSET:
            return self.find(client, request.voice)
        # The default is an operator's, and names a voice for all.
        return self._for_all(self._context.settings.voices.default)

    def is_for_all(self, name: str) -> bool:
        """Whether every client can name this voice."""
        return name in self.shared or name in self._pool.engine_voices

    def all_of(self, client: str) -> list[Voice]:
        """Every voice that a client can name: the engine's, those for all, and its own."""
        engine = self._pool.engine
        own = {voice.name: _listed(voice) for voice in self.own.of(client)}
        shared = [_listed(voice) for voice in self.shared.values() if voice.name not in self._pool.engine_voices]
        for_all = (engine.voices if engine else []) + shared
        return [voice for voice in for_all if voice.name not in own] + list(own.values())

    def in_words(self, client: str) -> str:
        """The voices that a client can name, for an error about one that is not there."""
        names = [voice.name for voice in self.all_of(client)]
        return f"there are {in_words(names)}" if names else "none is registered yet (glmttsctl voice add)"


def _listed(voice: StoredVoice) -> Voice:
    owner = "own" if voice.owner else "shared"
    return Voice(name=voice.name, language=voice.language, description=voice.description, owner=owner, sample=True)
