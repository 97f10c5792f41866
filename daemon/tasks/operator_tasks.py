"""Slow requests of operators, run in the background thread: reading the configuration, keeping a pause.

Each outcome goes to the core as an input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtts.protocol.system_words import error_in_words

from .. import config
from ..config.tcp_access import Access
from ..core import effects, inputs
from ..loop import Background
from ..storage.pause import PauseFile

_TOO_MANY = "too many operations are waiting; try again"


class OperatorTasks:
    """Runs operators' slow requests, one at a time."""

    def __init__(
        self,
        background: Background,
        step: Callable[[inputs.Input], None],
        *,
        config_file: Path | None,
        pause: PauseFile,
        admit: Callable[[Access | None], str] | None = None,
        warn: Callable[[str], None],
        warn_of_pause: Callable[[str], None],
    ) -> None:
        """
        Args:
            step: takes the outcome to the core; called in the loop.
            admit: takes the clients that may connect by TCP after a reload; returns the file that names them.
            warn: takes a probable mistake in the configuration.
            warn_of_pause: takes the reason why a pause, or its end, could not be written down.
        """
        self._background = background
        self._step = step
        self._config_file = config_file
        self._admit = admit
        self._warn = warn
        self._pause = pause
        self._warn_of_pause = warn_of_pause

    def read_settings(self, effect: effects.ReadSettings) -> None:
        """Read the configuration again; SettingsRead follows."""

        def then(result: Any) -> None:
            if isinstance(result, config.Config):
                keys = self._admit(result.tcp) if self._admit else ""
                event = inputs.SettingsRead(result.settings, [], effect.to, effect.id, authorised_keys=keys)
            else:
                problems = result.problems if isinstance(result, config.ConfigError) else [error_in_words(result)]
                event = inputs.SettingsRead(None, problems, effect.to, effect.id)
            self._step(event)
            if isinstance(result, config.Config):
                self.look_up_names(result)

        if not self._background.run(lambda: config.read(self._config_file), then):
            then(RuntimeError(_TOO_MANY))

    def look_up_names(self, loaded: config.Config) -> None:
        """Warn of unknown names: in the background, since a directory on the network may be slow."""

        def then(result: Any) -> None:
            for problem in (
                result if isinstance(result, list) else [f"names were not looked up: {error_in_words(result)}"]
            ):
                self._warn(problem)

        if config.names_in(loaded.settings):
            self._background.run(lambda: config.unknown_names(loaded.settings, loaded.tcp), then)

    def keep_pause(self, effect: effects.KeepPause) -> None:
        """Write down whether the queue is paused."""

        def then(result: Any) -> None:
            if isinstance(result, Exception):
                self._warn_of_pause(error_in_words(result))

        if not self._background.run(lambda: self._pause.write(effect.since), then):
            then(RuntimeError(_TOO_MANY))
