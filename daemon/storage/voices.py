"""Registered voices: a folder each, with the recording as it was sent and its text.

Every method may wait for the disk, so the daemon calls them from a thread. A voice changes in one step, the renaming of
its ``voice.json``: whatever ends the process, the old voice or the new one is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from glmtts.protocol import control, requests
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.files import read_file
from glmtts.protocol.system_words import error_in_words, exit_in_words
from glmtts.protocol.texts import TextError, transcript

from ..core.inputs import StoredVoice
from . import free_space
from .outputs import put, sync_folder
from .recording_files import not_a_recording, recording_ending

_NAME = re.compile(r"[\w-]{1,64}")
_FILE = "voice.json"
_MAX_FILE_BYTES = 64 * 1024
_MODE = 0o640


class VoiceError(Exception):
    """A voice that can't be registered, found or removed; ``code`` is for the client."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Description(Struct, frozen=True, kw_only=True):
    """The content of voice.json."""

    recording: str
    text: str
    language: str
    description: str
    sha256: str
    #: The size of the recording, which reveals a damaged one.
    bytes: int
    seconds: float
    sample_rate: int
    #: Seconds since 1970, UTC.
    added: float
    #: The key of the client whose own it is, and whether the client said that the person who is heard agrees.
    owner: str = ""
    consent: bool = False


class VoiceStore:
    """Owns the folder of the voices, which is made when the first one is added; ``own``: it is that of one client."""

    def __init__(self, folder: Path, *, own: bool = False) -> None:
        self.folder = folder
        self._own = own
        #: The voices that :meth:`load_all` skipped, and why.
        self.damaged: dict[str, str] = {}
        #: Begins the names of unfinished voices, so that other daemons with this folder leave them alone.
        self.instance = ""
        self._tidied = False

    def load_all(self) -> dict[str, StoredVoice]:
        """Every usable voice, by name; the others are in ``damaged``.

        The first call also removes what crashes and replacements have left. A later one does not, since it may run
        beside :meth:`add` and beside jobs that read a replaced recording.
        """
        self.damaged = {}
        voices: dict[str, StoredVoice] = {}
        try:
            entries = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return voices
        except OSError as error:
            self.damaged[str(self.folder)] = f"the folder of the voices can't be read: {error.strerror}"
            return voices
        for entry in entries:
            if entry.name.startswith((f".adding-{self.instance}", f".removed-{self.instance}")) and not self._tidied:
                _remove_tree(entry)
            elif not entry.name.startswith(".") and entry.is_dir():
                try:
                    voices[entry.name] = self._load(entry.name)
                except VoiceError as error:
                    self.damaged[entry.name] = error.message
        if not self._tidied:
            for voice in voices.values():
                _tidy(Path(voice.path))
        self._tidied = True
        return voices

    def add(
        self,
        request: control.VoiceAdd | requests.VoiceAdd,
        recording: bytes,
        *,
        seconds: float,
        sample_rate: int,
        keep_free: int = 0,
        owner: str = "",
        replace: bool | None = None,
    ) -> StoredVoice:
        """Register a voice whose recording has passed :func:`check_recording`, and sync it.

        ``keep_free``: bytes that it leaves on the disk. ``replace``: in place of the request's own. Raises VoiceError:
        ``bad_request`` for a name that is invalid or taken, ``bad_audio``, ``output_failed``.
        """
        name = request.name
        _check_name(name)
        ending = recording_ending(recording)
        if not ending:
            raise VoiceError(ErrorCode.BAD_AUDIO, not_a_recording(recording))
        digest = hashlib.sha256(recording).hexdigest()
        about = _Description(
            # The name depends on the content, so a replaced recording stays readable for the jobs that use it.
            recording=f"recording-{digest[:12]}{ending}",
            text=request.text,
            language=request.language,
            description=request.description,
            sha256=digest,
            bytes=len(recording),
            seconds=seconds,
            sample_rate=sample_rate,
            added=round(time.time(), 3),
            owner=owner,
            consent=isinstance(request, requests.VoiceAdd) and request.consent,
        )
        target = self.folder / name
        try:
            self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            if free_space.above(self.folder, keep_free) < len(recording):
                raise VoiceError(
                    ErrorCode.OUTPUT_FAILED,
                    f"the voice can't be written to {target}: what is free there is kept for the journal ([limits] "
                    "disk_reserve_mib); remove files there",
                )
            if self._own and target.is_symlink():
                # Not this daemon's work, and its target is no place to write to.
                target.unlink()
            if target.exists():
                if not (request.replace if replace is None else replace):
                    raise VoiceError(
                        ErrorCode.BAD_REQUEST,
                        f"name: there is a voice {name!r} already; send replace to put this one in its place",
                    )
                self._replace(target, recording, about)
            else:
                self._make(target, recording, about)
        except OSError as error:
            reason = error_in_words(error)
            if isinstance(error, FileExistsError | NotADirectoryError):
                reason = f"{error.filename} is not a folder; remove it"
            raise VoiceError(ErrorCode.OUTPUT_FAILED, f"the voice can't be written to {target}: {reason}") from error
        return self._stored(target, about)

    def remove(self, name: str) -> None:
        """Remove a voice. Raises VoiceError: ``voice_not_found``, ``output_failed``."""
        _check_name(name)
        # Renamed first, so that a crash leaves no partial voice.
        gone = self.folder / f".removed-{self.instance}-{os.urandom(6).hex()}"
        try:
            (self.folder / name).rename(gone)
        except FileNotFoundError:
            raise VoiceError(ErrorCode.VOICE_NOT_FOUND, f"there is no registered voice {name!r}") from None
        except OSError as error:
            raise VoiceError(
                ErrorCode.OUTPUT_FAILED, f"the voice {name!r} can't be removed: {error_in_words(error)}"
            ) from error
        _remove_tree(gone)

    def _load(self, name: str) -> StoredVoice:
        folder = self.folder / name
        try:
            _check_name(name)
            if self._own and folder.is_symlink():
                raise VoiceError(ErrorCode.BAD_AUDIO, "its folder is a symbolic link")
            about = msgspec.json.decode(read_file(folder / _FILE, _MAX_FILE_BYTES), type=_Description)
            recording = folder / about.recording
            if "/" in about.recording or recording.is_symlink() or not recording.is_file():
                raise VoiceError(ErrorCode.BAD_AUDIO, f"its recording {about.recording!r} is missing")
            size = recording.stat().st_size
        except msgspec.MsgspecError as error:
            raise VoiceError(ErrorCode.BAD_AUDIO, f"its {_FILE} is damaged: {error}") from None
        except OSError as error:
            raise VoiceError(ErrorCode.BAD_AUDIO, f"{error.filename} can't be read: {error.strerror}") from None
        if size != about.bytes:
            raise VoiceError(
                ErrorCode.BAD_AUDIO, f"its recording has {size} bytes, where {about.bytes} were registered"
            )
        try:
            about = msgspec.structs.replace(about, text=transcript(about.text))
        except TextError as error:
            raise VoiceError(ErrorCode.BAD_REQUEST, f"its transcript: {error}") from None
        return self._stored(folder, about)

    def _stored(self, folder: Path, about: _Description) -> StoredVoice:
        return StoredVoice(
            folder.name,
            str(folder / about.recording),
            about.text,
            about.language,
            about.description,
            about.seconds,
            owner=about.owner if self._own else "",
            bytes=about.bytes,
            added=about.added,
        )

    def _make(self, target: Path, recording: bytes, about: _Description) -> None:
        adding = self.folder / f".adding-{self.instance}-{os.urandom(6).hex()}"
        adding.mkdir(mode=0o750)
        try:
            adding.chmod(0o750)
            put(adding / about.recording, recording, _MODE)
            put(adding / _FILE, msgspec.json.encode(about), _MODE)
            sync_folder(adding)
            adding.rename(target)
        except OSError:
            _remove_tree(adding)
            raise
        sync_folder(self.folder)

    def _replace(self, target: Path, recording: bytes, about: _Description) -> None:
        if self._own:
            # Jobs that start now may read the recording in use. Those before it go now, so that no client fills the
            # disk with them until the next start.
            with contextlib.suppress(VoiceError):
                _tidy(Path(self._load(target.name).path))
        before = {path.name for path in target.iterdir()} - {_FILE}
        fresh = about.recording not in before or (target / about.recording).stat().st_size != about.bytes
        try:
            if fresh:
                put(target / about.recording, recording, _MODE)
            put(target / _FILE, msgspec.json.encode(about), _MODE)
        except OSError:
            if fresh:
                (target / about.recording).unlink(missing_ok=True)
            raise
        sync_folder(target)


def check_recording(
    data: bytes, python: str, min_s: float, max_s: float, timeout_s: float = 20.0
) -> dict[str, float | int]:
    """Decode ``data`` in a process of its own, because decoders are written in C and recordings are untrusted.

    Returns ``seconds``, ``sample_rate`` and ``channels``. Raises VoiceError: ``bad_audio`` for an unusable recording,
    ``unavailable`` when the check itself fails.
    """
    import subprocess

    if not recording_ending(data):
        raise VoiceError(ErrorCode.BAD_AUDIO, not_a_recording(data))
    command = [python, "-m", "glmtts.daemon.storage.recordings", str(min_s), str(max_s)]
    try:
        # `python -m` puts the current folder first in the path, so it must not be the daemon's.
        process = subprocess.run(
            command,
            input=data,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            cwd="/",
            # A thread of numpy's would not be confined.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise VoiceError(ErrorCode.BAD_AUDIO, f"the recording could not be decoded within {timeout_s:g} s") from None
    except OSError as error:
        raise VoiceError(
            ErrorCode.UNAVAILABLE,
            f"recordings can't be checked, since {python} can't be run: {error_in_words(error, starting=True)}",
        ) from None
    try:
        answer = msgspec.json.decode(process.stdout, type=dict[str, float | int | str])
    except msgspec.MsgspecError:
        if process.returncode == -signal.SIGKILL:
            message = "the process that decodes the recording was killed (SIGKILL), perhaps because memory is short"
            raise VoiceError(ErrorCode.UNAVAILABLE, f"recordings can't be checked: {message}") from None
        if process.returncode < 0:
            how = exit_in_words(process.returncode)
            message = f"the process that decodes the recording was {how}: the file is probably damaged"
            raise VoiceError(ErrorCode.BAD_AUDIO, message) from None
        last = process.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        raise VoiceError(ErrorCode.UNAVAILABLE, f"recordings can't be checked: {last or 'no answer'}") from None
    if "error" in answer:
        raise VoiceError(ErrorCode.BAD_AUDIO, str(answer["error"]))
    return {key: value for key, value in answer.items() if not isinstance(value, str)}


def _check_name(name: str) -> None:
    # 64 characters of four bytes are more than the 255 bytes that file systems take.
    if not _NAME.fullmatch(name) or len(name.encode()) > 200:
        raise VoiceError(
            ErrorCode.BAD_REQUEST, f"name: {name[:70]!r} is invalid; use 1..64 letters, digits, hyphens and underscores"
        )


def _tidy(recording: Path) -> None:
    """Remove everything but the current recording and its description."""
    with contextlib.suppress(OSError):
        for path in recording.parent.iterdir():
            if path.name not in (_FILE, recording.name):
                path.unlink()


def _remove_tree(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
