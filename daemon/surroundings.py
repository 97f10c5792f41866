"""A look, every few seconds, at what the daemon needs and others may remove: folders, files and programs.

Whatever can be made again is; the rest is reported to the core, which raises an alert until it is back. The runtime
folder is looked at in the loop, as it is in memory mostly; the others in a thread, since a disk may not answer.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import structs

from . import config
from .config.tcp_access import key_files
from .core.inputs import StoredVoice, SurroundingsSeen
from .core.settings import Settings
from .log.logger import Logger
from .loop import Background
from .processes.manager import Processes
from .storage.journal import Journal
from .storage.problems import printable
from .transport.listeners import RuntimeDirError, TakenError

#: Seconds between two looks.
LOOK_S = 5.0
#: Looks without an answer of the disk after which that is a problem.
_SLOW_LOOKS = 6
_TRIES = f"The daemon tries again every {LOOK_S:g} s; it ends after some minutes, once no connected client has a job"
#: Voices that a message names at most.
_NAMED = 3


class Surroundings:
    """Owns the result of the last look, and hands it to the core when it has changed."""

    def __init__(
        self,
        settings: Settings,
        config_file: Path | None,
        log: Logger,
        *,
        background: Background,
        restore: Callable[[], str],
        can_be_found: Callable[[], bool],
        step: Callable[[SurroundingsSeen], None],
        processes: Processes,
        journal: Journal,
        voices: Callable[[], Iterable[StoredVoice]],
        manager: Callable[[], str],
        reached_by_tcp: bool,
    ) -> None:
        """
        Args:
            background: A thread of this object's own.
            restore: Makes the runtime folder and its sockets again; returns a lasting problem of theirs, or ``""``.
                Raises RuntimeDirError.
            can_be_found: Whether clients find the requests socket all the same.
            step: Takes a changed result to the core.
            voices: The registered voices.
            manager: Why the service manager can't be reached, or ``""``.
            reached_by_tcp: Whether clients can find the daemon without its runtime folder.
        """
        self._files = Files(settings, config_file, log)
        self._background = background
        # The thread starts with the daemon, so that a growing number of threads is always a leak.
        background.run(lambda: None, lambda _: None)
        self._restore = restore
        self._can_be_found = can_be_found
        self._step = step
        self._processes = processes
        self._journal = journal
        self._voices = voices
        self._manager = manager
        self._reached_by_tcp = reached_by_tcp
        self._looks_begun = 0
        #: What the loop has found, what the thread has found, and what the core knows.
        self._reach = SurroundingsSeen({})
        self._found: dict[str, str] = {}
        self._seen = SurroundingsSeen({})

    def use(self, settings: Settings) -> None:
        """Look at what these settings name from now on."""
        self._files.settings = settings

    def look(self) -> None:
        """Look at everything; called in the loop."""
        seen = SurroundingsSeen({})
        try:
            if problem := self._restore():
                seen.problems["socket_unit"] = problem
            if problem := self._processes.restore():
                seen.problems["records"] = problem
        except RuntimeDirError as error:
            if self._can_be_found():
                seen.problems["runtime_folder"] = str(error)
            else:
                seen.out_of_reach = not self._reached_by_tcp
                tries = _TRIES if seen.out_of_reach else "They still find it by TCP"
                seen.problems["runtime_folder"] = (
                    f"new clients can't find the daemon: {str(error).rstrip('.')}. {tries}"
                )
            seen.taken = isinstance(error, TakenError)
        if problem := self._manager():
            seen.problems["service_manager"] = f"the service manager can't be reached: {problem}"
        self._journal.look()
        if not self._looks_begun:
            voices = list(self._voices())
            self._background.run(lambda: self._files.look(voices), self._on_looked)
        self._looks_begun += 1
        if self._looks_begun > _SLOW_LOOKS:
            seconds = self._looks_begun * LOOK_S
            self._found["disk"] = f"a disk has not answered for {seconds:.0f} s: see 'dmesg', and the mounted shares"
        self._reach = seen
        self._tell()

    def collect(self) -> None:
        """Take the result of the thread; called in the loop."""
        self._background.collect()

    def _on_looked(self, found: object) -> None:
        self._looks_begun = 0
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, dict)
        self._found = found
        self._tell()

    def _tell(self) -> None:
        """Hand the result to the core if it has changed."""
        seen = structs.replace(self._reach, problems=self._reach.problems | self._found)
        if seen != self._seen:
            self._seen = seen
            self._step(seen)


class Files:
    """Looks at the files; for a thread, save ``settings``, which may be set at any time."""

    def __init__(self, settings: Settings, config_file: Path | None, log: Logger) -> None:
        self.settings = settings
        self._config_file = config_file
        self._log = log
        #: The file systems that the folders were on, by path: a folder is not made again where another one is mounted.
        self._devices: dict[Path, int] = {}
        #: Key files that were there once; they need not exist.
        self._known_keys: set[Path] = set()

    def look(self, voices: list[StoredVoice]) -> dict[str, str]:
        """The problems by the name of the thing, with a message each."""
        settings = self.settings
        state, outputs = config.state_dir(settings), config.outputs_dir(settings)
        problems = {
            "state_folder": self._folder(state, "durable jobs and new voices fail"),
            "outputs": self._folder(outputs, "requests with 'output' fail"),
            "voices": _recordings(voices, config.voices_dir(settings)),
            "configuration": self._configuration(),
            "interpreter": _program(
                config.engine_python(settings), "no worker can be started again; those that run go on"
            ),
            "python": _program(sys.executable, "the daemon can't check recordings, and can't be started again"),
            "engine_root": self._root(),
            "cache": _cache(config.cache_dir(settings)),
            "keys": self._keys(),
            "log": self._log.restore(),
        }
        if state in outputs.parents and not _is_folder(state):
            problems["outputs"] = ""
        return {name: printable(problem) for name, problem in problems.items() if problem}

    def _folder(self, folder: Path, means: str) -> str:
        """Make a folder again that was removed; returns what is wrong with it."""
        try:
            try:
                about = folder.stat()
            except FileNotFoundError:
                if not self._may_be_made(folder):
                    return f"the folder {folder} is gone, and the one above it too, or its disk: {means}. Put it back"
                folder.mkdir(mode=0o750, exist_ok=True)
                self._log.warning("a folder was removed, and is made again", folder=printable(folder))
                about = folder.stat()
        except OSError as error:
            return f"the folder {folder} is gone or out of reach ({error.strerror}): {means}. Put it back"
        if not stat.S_ISDIR(about.st_mode):
            return f"{folder} is not a folder: {means}. Remove it, and the daemon makes the folder again"
        self._devices[folder] = about.st_dev
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return f"the daemon's user may not write to {folder}: {means}. Give it the folder (chown, chmod)"
        return ""

    def _may_be_made(self, folder: Path) -> bool:
        """Whether the folder above it is there, on the same file system: without a mounted disk it is another one."""
        try:
            above = folder.parent.stat().st_dev
        except OSError:
            return False
        return self._devices.get(folder, above) == above

    def _configuration(self) -> str:
        file = self._config_file
        if file is None or (_is_file(file) and os.access(file, os.R_OK)):
            return ""
        what = "can't be read by the daemon's user" if _is_file(file) else "is gone, or is no file any more"
        return (
            f"the configuration {file} {what}: the one in force stays, a reload fails, and the daemon can't be started "
            "again with it. Put it back ('glmttsctl config show' prints the values in force)"
        )

    def _root(self) -> str:
        root = self.settings.engine.glmtts.root if self.settings.engine.name == "glmtts" else ""
        if not root or _is_folder(Path(root)):
            return ""
        return (
            f"the checkout {root} ([engine.glmtts] root) is gone: no worker can be started again; those that run go on"
        )

    def _keys(self) -> str:
        tcp = self.settings.tcp
        for file in key_files(tcp, config.state_dir(self.settings)) if tcp.listen else ():
            if file in self._known_keys and not _is_file(file):
                return f"the key file {file} is gone: the keys in force stay until the next reload. Put it back"
            if _is_file(file):
                self._known_keys.add(file)
        return ""


def _recordings(voices: list[StoredVoice], folder: Path) -> str:
    if _exists(folder) and not _is_folder(folder):
        return f"{folder} is not a folder: no voice can be added. Remove it, and the next voice makes the folder again"
    gone = [voice for voice in voices if not _is_file(Path(voice.path))]
    if not gone:
        return ""
    names = ", ".join(repr(voice.name) for voice in gone[:_NAMED]) + (", ..." if len(gone) > _NAMED else "")
    return (
        f"the recordings of {len(gone)} of {len(voices)} registered voices ({names}) are gone from {folder}: requests "
        "with them fail. Put them back, or add the voices again"
    )


def _cache(folder: Path) -> str:
    if _is_folder(folder) or not _exists(folder):
        return ""
    return f"{folder} is not a folder: workers of some engines can't be started. Remove it: they make it again"


def _program(path: str, means: str) -> str:
    if shutil.which(path) is not None:
        return ""
    return f"{path} is gone or can't be run: {means}. Install it again, or set another [engine] python"


# Unlike the methods of Path, these raise nothing where a folder above may not be entered.


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - see above


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - see above
