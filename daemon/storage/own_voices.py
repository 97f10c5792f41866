"""Voices that clients keep for themselves: a folder for each client, named by a digest, with a folder for each voice.

No name of a client becomes a path: gateways' customers have any. Methods may wait for the disk, and are called from one
thread after the start.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from glmtts.protocol import control, requests
from glmtts.protocol.errors import ErrorCode

from ..core.inputs import StoredVoice
from .voices import VoiceError, VoiceStore

#: The name of a client's folder.
_DIGEST = re.compile("[0-9a-f]{32}")


class OwnVoiceStore:
    """Owns the folder of the clients' own voices, which is made when the first one is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Voices that :meth:`load_all` skipped, and why.
        self.damaged: dict[str, str] = {}
        self.instance = ""

    def load_all(self) -> list[StoredVoice]:
        """Every usable voice of every client; called once, at the start."""
        found: list[StoredVoice] = []
        try:
            folders = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return found
        except OSError as error:
            self.damaged[str(self.folder)] = f"the folder of clients' own voices can't be read: {error.strerror}"
            return found
        for folder in folders:
            if not _DIGEST.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                self.damaged[folder.name] = f"{folder} is not a client's folder, and nothing in it is read; remove it"
                continue
            store = self._store(folder.name)
            for voice in store.load_all().values():
                if _folder_of(voice.owner) == folder.name:
                    found.append(voice)
                else:
                    store.damaged[voice.name] = "its voice.json names another client than the folder is for"
            self.damaged |= {f"{folder.name}/{name}": problem for name, problem in store.damaged.items()}
            _remove_if_empty(folder)
        return found

    def add(
        self,
        owner: str,
        request: requests.VoiceAdd | control.VoiceAdd,
        recording: bytes,
        *,
        seconds: float,
        sample_rate: int,
        keep_free: int,
    ) -> StoredVoice:
        """Keep a client's voice, in place of one of its name. Raises VoiceError as :meth:`.VoiceStore.add` does."""
        store = self._store(_folder_of(owner))
        if store.folder.is_symlink():
            message = f"the voice can't be kept: {store.folder} is a symbolic link; remove it"
            raise VoiceError(ErrorCode.OUTPUT_FAILED, message)
        with contextlib.suppress(OSError):  # the store reports it
            self.folder.mkdir(mode=0o700, exist_ok=True)
        try:
            return store.add(
                request,
                recording,
                seconds=seconds,
                sample_rate=sample_rate,
                keep_free=keep_free,
                owner=owner,
                # The daemon has refused this one if it has another; what it does not know of is damaged.
                replace=True,
            )
        finally:
            _remove_if_empty(store.folder)

    def remove(self, owner: str, name: str) -> None:
        """Remove a client's voice. Raises VoiceError."""
        store = self._store(_folder_of(owner))
        store.remove(name)
        _remove_if_empty(store.folder)

    def _store(self, folder: str) -> VoiceStore:
        store = VoiceStore(self.folder / folder, own=True)
        store.instance = self.instance
        return store


def _folder_of(owner: str) -> str:
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
