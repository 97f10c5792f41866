"""Registered voices: a folder each, with the recording as it was given and what is said in it.

Every method may wait for the disk, so the daemon calls them from a thread, never from its loop. A voice changes at one
point alone, the renaming of its ``voice.json``: whatever ends the process, the old voice or the new one is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from glmtts.protocol.errors import ErrorCode

from .outputs import sync_folder

_NAME = re.compile(r"[\w-]{1,64}")
_DESCRIPTION = "voice.json"
_MAX_DESCRIPTION_BYTES = 64 * 1024


class VoiceError(Exception):
    """A voice that can't be registered, found or removed; ``code`` is what the sender is told."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Stored(Struct, kw_only=True):
    """What voice.json holds. ``added`` is seconds since 1970, UTC; ``bytes`` tells a damaged recording."""

    recording: str
    text: str
    language: str
    description: str
    sha256: str
    bytes: int
    seconds: float
    sample_rate: int
    added: float


class RegisteredVoice(Struct, frozen=True, kw_only=True):
    """A voice that jobs can name; ``recording`` is the path of the file, ``text`` what is said in it."""

    name: str
    recording: Path
    text: str
    language: str
    description: str
    sha256: str
    seconds: float
    sample_rate: int
    added: float


class VoiceStore:
    """The voices in ``folder``, which is made when the first one is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: What :meth:`load_all` skipped, and why.
        self.damaged: dict[str, str] = {}
        self._tidied = False

    def load_all(self) -> dict[str, RegisteredVoice]:
        """Every voice that can be used, by name; the others are in ``damaged``.

        The first call also removes what crashes and replacements left behind; a later one may run beside :meth:`add`
        and beside jobs that read a replaced recording.
        """
        self.damaged = {}
        voices: dict[str, RegisteredVoice] = {}
        try:
            entries = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return voices
        except OSError as error:
            self.damaged[str(self.folder)] = f"the folder of the voices can't be read: {error.strerror}"
            return voices
        for entry in entries:
            if entry.name.startswith((".adding-", ".removed-")) and not self._tidied:
                _remove_tree(entry)
            elif not entry.name.startswith(".") and entry.is_dir():
                try:
                    voices[entry.name] = self._load(entry.name)
                except VoiceError as error:
                    self.damaged[entry.name] = error.message
        if not self._tidied:
            for voice in voices.values():
                _tidy(voice.recording)
        self._tidied = True
        return voices

    def add(
        self,
        name: str,
        recording: bytes,
        text: str,
        *,
        seconds: float,
        sample_rate: int,
        language: str = "",
        description: str = "",
        replace: bool = False,
    ) -> RegisteredVoice:
        """Register a voice whose recording :func:`check_recording` found good; when this returns it is on disk.

        Raises VoiceError: ``bad_request`` for a name that is none or is taken, ``bad_audio``, ``output_failed``.
        """
        _check_name(name)
        ending = recording_ending(recording)
        if not ending:
            raise VoiceError(ErrorCode.BAD_AUDIO, "the recording is no WAV, FLAC, OGG or MP3 file")
        digest = hashlib.sha256(recording).hexdigest()
        stored = _Stored(
            # The content in the name: a replaced recording stays readable for the jobs that were given its path.
            recording=f"recording-{digest[:12]}{ending}",
            text=text,
            language=language,
            description=description,
            sha256=digest,
            bytes=len(recording),
            seconds=seconds,
            sample_rate=sample_rate,
            added=round(time.time(), 3),
        )
        target = self.folder / name
        try:
            self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            if target.exists():
                if not replace:
                    raise VoiceError(
                        ErrorCode.BAD_REQUEST,
                        f"name: there is a voice {name!r} already; send replace to put this one in its place",
                    )
                self._replace(target, recording, stored)
            else:
                self._make(target, recording, stored)
        except OSError as error:
            raise VoiceError(
                ErrorCode.OUTPUT_FAILED, f"the voice can't be written to {target}: {error.strerror or error}"
            ) from error
        return _registered(target, stored)

    def remove(self, name: str) -> None:
        """Forget a voice. Raises VoiceError: ``voice_not_found``, ``output_failed``."""
        _check_name(name)
        # Renamed first: a crash in the middle leaves no half of a voice.
        gone = self.folder / f".removed-{os.urandom(6).hex()}"
        try:
            (self.folder / name).rename(gone)
        except FileNotFoundError:
            raise VoiceError(ErrorCode.VOICE_NOT_FOUND, f"there is no registered voice {name!r}") from None
        except OSError as error:
            raise VoiceError(
                ErrorCode.OUTPUT_FAILED, f"the voice {name!r} can't be removed: {error.strerror or error}"
            ) from error
        _remove_tree(gone)

    def _load(self, name: str) -> RegisteredVoice:
        folder = self.folder / name
        try:
            _check_name(name)
            with (folder / _DESCRIPTION).open("rb") as file:
                stored = msgspec.json.decode(file.read(_MAX_DESCRIPTION_BYTES), type=_Stored)
            recording = folder / stored.recording
            if "/" in stored.recording or not recording.is_file():
                raise VoiceError(ErrorCode.BAD_AUDIO, f"its recording {stored.recording!r} is missing")
            size = recording.stat().st_size
        except msgspec.MsgspecError as error:
            raise VoiceError(ErrorCode.BAD_AUDIO, f"its {_DESCRIPTION} is damaged: {error}") from None
        except OSError as error:
            raise VoiceError(ErrorCode.BAD_AUDIO, f"{error.filename} can't be read: {error.strerror}") from None
        if size != stored.bytes:
            raise VoiceError(
                ErrorCode.BAD_AUDIO, f"its recording has {size} bytes, where {stored.bytes} were registered"
            )
        return _registered(folder, stored)

    def _make(self, target: Path, recording: bytes, stored: _Stored) -> None:
        adding = self.folder / f".adding-{os.urandom(6).hex()}"
        adding.mkdir(mode=0o750)
        try:
            adding.chmod(0o750)
            _write(adding / stored.recording, recording)
            _write(adding / _DESCRIPTION, msgspec.json.encode(stored))
            sync_folder(adding)
            adding.rename(target)
        except OSError:
            _remove_tree(adding)
            raise
        sync_folder(self.folder)

    def _replace(self, target: Path, recording: bytes, stored: _Stored) -> None:
        before = {path.name for path in target.iterdir()} - {_DESCRIPTION}
        fresh = stored.recording not in before or (target / stored.recording).stat().st_size != stored.bytes
        temporary = target / f".{_DESCRIPTION}-{os.urandom(6).hex()}"
        try:
            if fresh:
                _write(target / stored.recording, recording)
            _write(temporary, msgspec.json.encode(stored))
            temporary.replace(target / _DESCRIPTION)
        except OSError:
            for path in (temporary, target / stored.recording if fresh else temporary):
                path.unlink(missing_ok=True)
            raise
        sync_folder(target)


def recording_ending(recording: bytes) -> str:
    """The file name ending by the first bytes: ``.wav``, ``.flac``, ``.ogg``, ``.mp3``, or ``""`` for none of them."""
    if recording[:4] in (b"RIFF", b"RF64") and recording[8:12] == b"WAVE":
        return ".wav"
    if recording[:4] == b"fLaC":
        return ".flac"
    if recording[:4] == b"OggS":
        return ".ogg"
    # ISO/IEC 11172-3: eleven bits set begin a frame, then no reserved version and layer III; ID3v2 tags come before it.
    frame = len(recording) > 1 and recording[0] == 0xFF and recording[1] & 0xE6 == 0xE2 and recording[1] & 0x18 != 0x08
    return ".mp3" if recording[:3] == b"ID3" or frame else ""


def check_recording(
    data: bytes, python: str, min_s: float, max_s: float, timeout_s: float = 20.0
) -> dict[str, float | int]:
    """Decode ``data`` in a process of its own; ``{"seconds", "sample_rate", "channels"}``.

    A process of its own, because decoders are written in C and recordings come from strangers. Raises VoiceError:
    ``bad_audio`` for a recording that can't be used, ``unavailable`` when the check itself can't be made.
    """
    import subprocess

    if not recording_ending(data):
        raise VoiceError(ErrorCode.BAD_AUDIO, "the recording is no WAV, FLAC, OGG or MP3 file")
    command = [python, "-m", "glmtts.daemon.storage.recordings", str(min_s), str(max_s)]
    try:
        # Not the daemon's own folder: `python -m` puts the current one first in the path.
        process = subprocess.run(command, input=data, capture_output=True, timeout=timeout_s, check=False, cwd="/")
    except subprocess.TimeoutExpired:
        raise VoiceError(ErrorCode.BAD_AUDIO, f"the recording could not be decoded within {timeout_s:g} s") from None
    except OSError as error:
        raise VoiceError(
            ErrorCode.UNAVAILABLE, f"recordings can't be checked: {python} can't be run ({error.strerror})"
        ) from None
    try:
        answer = msgspec.json.decode(process.stdout, type=dict[str, float | int | str])
    except msgspec.MsgspecError:
        if process.returncode < 0:
            message = f"decoding the recording ended with signal {-process.returncode}: the file is damaged"
            raise VoiceError(ErrorCode.BAD_AUDIO, message) from None
        last = process.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        raise VoiceError(ErrorCode.UNAVAILABLE, f"recordings can't be checked: {last or 'no answer'}") from None
    if "error" in answer:
        raise VoiceError(ErrorCode.BAD_AUDIO, str(answer["error"]))
    return {key: value for key, value in answer.items() if not isinstance(value, str)}


def _check_name(name: str) -> None:
    # 64 characters of four bytes are longer than the 255 bytes that file systems take.
    if not _NAME.fullmatch(name) or len(name.encode()) > 200:
        raise VoiceError(
            ErrorCode.BAD_REQUEST, f"name: {name[:70]!r} is none; use 1..64 letters, digits, hyphens and underscores"
        )


def _registered(folder: Path, stored: _Stored) -> RegisteredVoice:
    return RegisteredVoice(
        name=folder.name,
        recording=folder / stored.recording,
        text=stored.text,
        language=stored.language,
        description=stored.description,
        sha256=stored.sha256,
        seconds=stored.seconds,
        sample_rate=stored.sample_rate,
        added=stored.added,
    )


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _tidy(recording: Path) -> None:
    """Remove everything but the recording in force and its description."""
    with contextlib.suppress(OSError):
        for path in recording.parent.iterdir():
            if path.name not in (_DESCRIPTION, recording.name):
                path.unlink()


def _remove_tree(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
