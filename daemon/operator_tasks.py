"""What operators ask for that takes its time: reading the configuration, checking and keeping voices.

It is done in the background thread, and comes back to the core as an input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtts.protocol.control import VoiceAdd, VoiceRemove
from glmtts.protocol.errors import ErrorCode

from .config import load as config
from .config import names as config_names
from .config.tcp_access import Access
from .core import effects, inputs
from .core.settings import LimitsSettings
from .loop import Background
from .storage.voices import RegisteredVoice, VoiceError, VoiceStore, check_recording

_TOO_MANY = "too many operations wait to be carried out; try again"


class OperatorTasks:
    """``step`` takes the outcome into the core; it is called in the loop."""

    def __init__(
        self,
        background: Background,
        step: Callable[[inputs.Input], None],
        *,
        config_file: Path | None,
        voices: VoiceStore,
        limits: LimitsSettings,
        admit: Callable[[Access | None], str] | None = None,
        warn: Callable[[str], None],
    ) -> None:
        """``admit`` is told of who may connect by TCP whenever that was read again, and says by which file; ``warn`` of
        what in a configuration is probably a mistake.
        """
        self._background = background
        self._step = step
        self._config_file = config_file
        self._voices = voices
        #: What recordings are checked by.
        self.limits = limits
        self._admit = admit
        self._warn = warn

    def read_settings(self, effect: effects.ReadSettings) -> None:
        """Read the configuration again, and hand back SettingsRead."""

        def then(result: Any) -> None:
            if isinstance(result, config.Config):
                keys = self._admit(result.tcp) if self._admit else ""
                event = inputs.SettingsRead(result.settings, [], effect.to, effect.id, authorised_keys=keys)
            else:
                problems = result.problems if isinstance(result, config.ConfigError) else [str(result)]
                event = inputs.SettingsRead(None, problems, effect.to, effect.id)
            self._step(event)
            if isinstance(result, config.Config):
                self.look_up_names(result)

        if not self._background.run(lambda: config.load(self._config_file), then):
            then(RuntimeError(_TOO_MANY))

    def look_up_names(self, loaded: config.Config) -> None:
        """Warn of names that nobody has: in the background, since a directory on the network may take its time."""

        def then(result: Any) -> None:
            for problem in result if isinstance(result, list) else [f"names were not looked up: {result}"]:
                self._warn(problem)

        if config_names.named(loaded.settings):
            self._background.run(lambda: config_names.unknown(loaded.settings, loaded.tcp), then)

    def store_voice(self, effect: effects.StoreVoice) -> None:
        """Keep or remove a voice, and hand back VoiceStored."""
        request = effect.request
        recording = bytes(effect.recording or b"")

        def task() -> inputs.StoredVoice | None:
            if isinstance(request, VoiceRemove):
                self._voices.remove(request.name)
                return None
            return self._add_voice(request, recording)

        def then(result: Any) -> None:
            event = inputs.VoiceStored(effect.to, request.id, request.name)
            if isinstance(result, VoiceError):
                event.error = (result.code.value, result.message)
            elif isinstance(result, Exception):
                event.error = (ErrorCode.UNAVAILABLE.value, f"the voice could not be stored: {result}")
            else:
                event.voice = result
            self._step(event)

        if not self._background.run(task, then):
            then(RuntimeError(_TOO_MANY))

    def _add_voice(self, request: VoiceAdd, recording: bytes) -> inputs.StoredVoice:
        limits = self.limits
        found = check_recording(recording, sys.executable, limits.recording_min_s, limits.recording_max_s)
        voice = self._voices.add(
            request.name,
            recording,
            request.text,
            seconds=float(found["seconds"]),
            sample_rate=int(found["sample_rate"]),
            language=request.language,
            description=request.description,
            replace=request.replace,
        )
        return stored(voice)


def stored(voice: RegisteredVoice) -> inputs.StoredVoice:
    """A voice of the store, as the core knows it."""
    return inputs.StoredVoice(
        name=voice.name,
        path=str(voice.recording),
        text=voice.text,
        language=voice.language,
        description=voice.description,
        seconds=voice.seconds,
    )
