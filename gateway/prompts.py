"""Recordings in ``[gateway] prompts_folder``, which ``/api/tts`` names as its callers' Flask service did."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

import msgspec

from glmtts.protocol.requests import VoiceName

from .errors import HttpError

#: Bytes of a transcript: 1,000 characters at most are accepted.
_TRANSCRIPT_BYTES = 8_192
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A pipe or a device is not waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def is_file_name(prompt: str) -> bool:
    """Whether it can't be a voice: the names of voices have no dot and no slash."""
    try:
        msgspec.convert(prompt, VoiceName)
    except msgspec.ValidationError:
        return True
    return False


def read(folder: str, name: str, max_bytes: int) -> tuple[bytes, str]:
    """A recording below ``folder``, and the transcript in a file of its name that ends in ``.txt``, or ``""``.

    Neither ``..`` nor a symbolic link leads out of the folder. Raises HttpError. Reads the disk.
    """
    parts = name.split("/")
    if not folder:
        message = (
            f"prompt_audio: {name[:100]!r} is no voice's name; files are read where [gateway] prompts_folder names "
            "their folder. Send the name of a voice, or the recording as a data: URI"
        )
        raise HttpError(400, message, param="prompt_audio")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        message = f"prompt_audio: {name[:100]!r} is no file's name below [gateway] prompts_folder"
        raise HttpError(400, message, param="prompt_audio")
    try:
        recording = _read(folder, parts, max_bytes)
    except _TooLargeError:
        message = f"prompt_audio: the file is over {max_bytes} bytes long"
        raise HttpError(413, message, code="too_large", param="prompt_audio") from None
    except (OSError, UnicodeEncodeError):
        # A link, a pipe or a folder in its place is answered alike.
        message = f"prompt_audio: there is no file {name[:100]!r} below [gateway] prompts_folder"
        raise HttpError(400, message, param="prompt_audio") from None
    transcript = ""
    with suppress(OSError, UnicodeDecodeError, _TooLargeError):
        beside = [*parts[:-1], parts[-1].rpartition(".")[0] + ".txt"]
        transcript = _read(folder, beside, _TRANSCRIPT_BYTES).decode().strip()
    return recording, transcript


class _TooLargeError(Exception):
    pass


def _read(folder: str, parts: list[str], max_bytes: int) -> bytes:
    at = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=at)
            os.close(at)
            at = inner
        with os.fdopen(os.open(parts[-1], _FILE, dir_fd=at), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("not a regular file")
            data = file.read(max_bytes + 1)
    finally:
        os.close(at)
    if len(data) > max_bytes:
        raise _TooLargeError
    return data
