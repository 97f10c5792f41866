"""Voices are checked, kept and removed in background threads: operators' in theirs, clients' own in another.

Each outcome goes to the core as an input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtts.protocol import control, requests
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.system_words import error_in_words

from ..core import effects, inputs
from ..core.settings import LimitsSettings
from ..log.logger import Logger
from ..loop import Background
from ..storage.own_voices import OwnVoiceStore
from ..storage.voices import VoiceError, VoiceStore, check_recording

#: The core sends a client's change when the one before it has ended.
_MAX_OF_CLIENTS = 2


class VoiceTasks:
    """Owns the files of all voices; ``limits`` are those for recordings."""

    def __init__(
        self,
        shared: Path,
        own: Path,
        *,
        wakeup_fd: int,
        operators: Background,
        step: Callable[[inputs.Input], None],
        limits: LimitsSettings,
    ) -> None:
        """
        Args:
            shared: the folder of the voices for all.
            own: the folder of those that clients keep for themselves.
            operators: the thread of operators' requests.
            step: takes the outcome to the core; called in the loop.
        """
        self._shared, self._own = VoiceStore(shared), OwnVoiceStore(own)
        self._operators = operators
        # A slow recording of a client keeps no operator waiting.
        self._clients = Background(wakeup_fd, _MAX_OF_CLIENTS)
        self._step = step
        self.limits = limits

    def load(self, instance: str, log: Logger) -> list[inputs.StoredVoice]:
        """Every usable voice; ``instance`` begins the names of this daemon's unfinished ones."""
        self._shared.instance = self._own.instance = instance
        voices = [*self._shared.load_all().values(), *self._own.load_all()]
        for name, problem in (self._shared.damaged | self._own.damaged).items():
            log.warning("voice can't be used", voice=name, reason=problem)
        return voices

    def store(self, effect: effects.StoreVoice) -> None:
        """Keep or remove a voice; VoiceStored follows."""
        request, owner = effect.request, effect.owner
        recording = bytes(effect.recording or b"")

        def task() -> inputs.StoredVoice | None:
            if isinstance(request, control.VoiceAdd | requests.VoiceAdd):
                return self._add(request, recording, owner)
            if owner:
                self._own.remove(owner, request.name)
            else:
                self._shared.remove(request.name)
            return None

        def then(result: Any) -> None:
            event = inputs.VoiceStored(effect.to, request.id, request.name, owner=owner)
            if isinstance(result, VoiceError):
                event.error = (result.code.value, result.message)
            elif isinstance(result, Exception):
                event.error = (ErrorCode.UNAVAILABLE.value, f"the voice could not be stored: {error_in_words(result)}")
            else:
                event.voice = result
            self._step(event)

        if not (self._clients if owner else self._operators).run(task, then):
            then(RuntimeError("too many operations are waiting; try again"))

    def _add(self, request: control.VoiceAdd | requests.VoiceAdd, recording: bytes, owner: str) -> inputs.StoredVoice:
        limits = self.limits
        found = check_recording(recording, sys.executable, limits.recording_min_s, limits.recording_max_s)
        about: dict[str, Any] = {
            "seconds": float(found["seconds"]),
            "sample_rate": int(found["sample_rate"]),
            "keep_free": limits.disk_reserve_mib << 20,
        }
        if owner:
            return self._own.add(owner, request, recording, **about)
        return self._shared.add(request, recording, **about)

    def collect(self) -> None:
        """Hand over the outcomes of clients' changes; called in the loop."""
        self._clients.collect()
