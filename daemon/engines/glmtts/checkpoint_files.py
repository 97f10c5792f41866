"""Whether a file of a checkpoint is whole, by its format, and how much is in it, without reading its weights.

What is read is a header, a directory at the end and a few samples: a file of six gigabytes takes milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any

#: Larger than any header of safetensors may be (its own limit).
_MAX_HEADER = 100_000_000

#: A smaller file is read whole for its digest; of a larger one so many samples of so many bytes.
_WHOLE = 8 << 20
_SAMPLES, _SAMPLE_BYTES = 16, 64 << 10

_LFS = b"version https://git-lfs"
_HTML = (b"<!doctype", b"<html")
#: What torch.save wrote before it wrote zip files: a pickle of protocol 2 or later.
_PICKLE = b"\x80"

#: Of ONNX's ModelProto: the field that is the graph. Protocol buffers' wire types of fields.
_GRAPH_FIELD = 7
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class DamagedError(Exception):
    """The file is not what it should be. Its words follow the file's name: what is wrong, and what to do."""


def is_missing(path: Path) -> bool:
    """Whether there is nothing of that name, as opposed to what can't be read, or a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def look_inside(path: Path) -> int:
    """The size of a file that can be read and is no stand-in for another. Raises DamagedError, FileNotFoundError."""
    try:
        with path.open("rb") as file:
            first = file.read(256)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedError(f"is a link to {path.readlink()}, which is not there; copy the file itself") from None
        raise
    except IsADirectoryError:
        raise DamagedError("is a folder; a file is expected") from None
    except OSError as error:
        raise DamagedError(
            f"can't be read by user {os.geteuid()}: {error.strerror}; chmod a+r it, and a+rx the folders above it"
        ) from None
    if not size:
        raise DamagedError("is empty; download it again")
    if first.startswith(_LFS):
        raise DamagedError(
            f"is a pointer of Git LFS ({size} bytes) in place of the file; git lfs install && git -C {path.parent} "
            "lfs pull, or download it again"
        )
    if first.lstrip().lower().startswith(_HTML):
        raise DamagedError("is a web page in place of the file: the download was answered by a proxy; do it again")
    if (control := path.with_name(path.name + ".aria2")).exists():
        raise DamagedError(f"is not downloaded to its end, as {control.name} beside it says; let aria2c go on")
    return size


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DamagedError, FileNotFoundError."""
    look_inside(path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"is not JSON ({str(error)[:100]}); download it again") from None
    if not isinstance(value, dict):
        raise DamagedError("is JSON, but not an object; download it again")
    return value


def read_safetensors(path: Path) -> dict[str, int]:
    """How many elements each tensor has, by name. Raises DamagedError, FileNotFoundError.

    The format: 8 bytes for the length of the header, the header as JSON, then the tensors without any gap.
    """
    size = look_inside(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER:
            raise DamagedError("is no safetensors file; download it again")
        if 8 + length > size:
            raise DamagedError(f"is cut off in its header, after {size} bytes; download it again")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        elements = {name: math.prod(tensor["shape"]) for name, tensor in tensors.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise DamagedError("is no safetensors file: its header makes no sense; download it again") from None
    if size < 8 + length + end:
        raise DamagedError(f"is cut off: it has {size} of {8 + length + end} bytes; download it again")
    if size > 8 + length + end:
        raise DamagedError(f"has {size - 8 - length - end} bytes too many; download it again")
    return elements


def read_torch_zip(path: Path) -> int:
    """How many bytes of tensors a file of ``torch.save`` or ``torch.jit.save`` has. Raises DamagedError,
    FileNotFoundError.

    A zip file's directory is at its end, so that a cut one has none. What torch wrote before version 1.6 is no zip
    file, and its size alone is known.
    """
    size = look_inside(path)
    with path.open("rb") as file:
        first = file.read(1)
        if first == _PICKLE:
            return size
        try:
            with zipfile.ZipFile(file) as archive:
                return sum(entry.file_size for entry in archive.infolist() if _holds_tensors(entry.filename))
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
            file.seek(0)
            if file.read(4) == b"PK\x03\x04":
                raise DamagedError(f"is cut off, after {size} bytes: its directory is missing; get it again") from None
            raise DamagedError("is no file that torch has saved; download it again") from None


def _holds_tensors(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[1] in {"data", "constants"} and parts[2].isdigit()


def check_onnx(path: Path) -> None:
    """Raises DamagedError, FileNotFoundError. ONNX is a protocol buffer: each of its fields says how long it is."""
    size = look_inside(path)
    with path.open("rb") as file:
        fields: set[int] = set()
        while file.tell() < size:
            key = _varint(file)
            kind = key & 7
            if kind == _VARINT:
                _varint(file)
            elif kind in (_FIXED64, _FIXED32):
                file.seek(8 if kind == _FIXED64 else 4, os.SEEK_CUR)
            elif kind == _LENGTH:
                file.seek(_varint(file), os.SEEK_CUR)
            else:
                raise DamagedError("is no ONNX model; get it again")
            if file.tell() > size:
                words = "is cut off" if fields else "is no ONNX model"
                raise DamagedError(f"{words}: {size} bytes of at least {file.tell()}; get it again")
            fields.add(key >> 3)
    if _GRAPH_FIELD not in fields:
        raise DamagedError("is no ONNX model, or cut off: it has no graph; get it again")


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise DamagedError("is no ONNX model, or cut off; get it again")


def digest(path: Path) -> bytes:
    """Of a small file's bytes; of a large one's size, beginning, end and samples between them. Never of its times.

    The beginning of a safetensors file and the end of a zip file are the directories of what they hold.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found.update(size.to_bytes(8, "little"))
        if size <= _WHOLE:
            found.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                found.update(file.read(_SAMPLE_BYTES))
    return found.digest()
