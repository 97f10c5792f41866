"""Checks that a file of a checkout or its checkpoint is whole, and reads its contents without reading its weights.

Of large files it reads a header, a directory at the end and a few samples: six gigabytes take milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

#: safetensors' own limit of its header, in bytes.
_MAX_HEADER = 100_000_000

#: Up to this size a file is hashed whole; larger ones by this many samples of this many bytes.
_WHOLE = 8 << 20
_SAMPLES, _SAMPLE_BYTES = 16, 64 << 10

_LFS = b"version https://git-lfs"
_HTML = (b"<!doctype", b"<html")
#: The first byte of a file of torch.save before 1.6: a pickle of protocol 2 or later.
_PICKLE = b"\x80"

#: The files that a tokenizer's code reads; the modules that a configuration of HyperPyYAML imports.
_VOCABULARY = re.compile(r"vocab_files_names\s*(?::[^=]*)?=\s*\{([^}]*)\}")
_MODULE = re.compile(r"!(?:new|name|apply):([A-Za-z_][\w.]*)\.\w+")


class DamagedError(Exception):
    """The file is damaged. The message is written to follow the file's name: what is wrong, and what to do."""


def is_missing(path: Path) -> bool:
    """Whether nothing has that name; False for a file that can't be read and for a dangling link."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def look_inside(path: Path) -> int:
    """The size in bytes of a readable file that is no placeholder. Raises DamagedError, FileNotFoundError."""
    try:
        with path.open("rb") as file:
            first = file.read(256)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedError(f"is a link to {path.readlink()}, which does not exist; copy the file itself") from None
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
        raise DamagedError("is a web page in place of the file: a proxy answered the download; repeat it")
    if (control := path.with_name(path.name + ".aria2")).exists():
        raise DamagedError(f"is not fully downloaded, as {control.name} beside it shows; let aria2c resume")
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
    """The number of elements of each tensor, by name. Raises DamagedError, FileNotFoundError.

    The format: 8 bytes for the length of the header, the header as JSON, then the tensors without gaps.
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
    """Bytes of tensors in a file of ``torch.save`` or ``torch.jit.save``. Raises DamagedError, FileNotFoundError.

    A zip file has its directory at the end, so a truncated one has none. Files of torch before 1.6 are no zip files:
    for those it is the size of the file.
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
    """Check the first bytes of an ONNX model, the version of its format. Raises DamagedError, FileNotFoundError."""
    look_inside(path)
    with path.open("rb") as file:
        # Protocol buffers: field 1, a small integer.
        start = file.read(2)
    if start[:1] != b"\x08" or not 0 < start[1] < 0x80:
        raise DamagedError("is no ONNX model; get it again")


def _check_lines(path: Path, keys: tuple[str, ...], *, blank: bool) -> None:
    """Check that each line is a JSON object with ``keys``: people edit these files, and a bad line fails every text."""
    if path.stat().st_size:  # an empty file means: no replacements
        look_inside(path)
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if blank and not line.strip():
            continue
        try:
            good = isinstance(value := json.loads(line), dict) and all(isinstance(value.get(key), str) for key in keys)
        except (ValueError, RecursionError):
            good = False
        if not good:
            wanted = " with " + " and ".join(keys) if keys else ""
            raise DamagedError(f"has no JSON object{wanted} in line {number}: correct or remove the line")


def check_custom_replacements(path: Path) -> None:
    """Check configs/custom_replace.jsonl. Raises DamagedError, FileNotFoundError."""
    _check_lines(path, ("origin", "new"), blank=False)


def check_phoneme_replacements(path: Path) -> None:
    """Check configs/G2P_replace_dict.jsonl. Raises DamagedError, FileNotFoundError."""
    _check_lines(path, (), blank=True)


def read_vocabulary_names(path: Path) -> list[str]:
    """The files that a tokenizer's code reads, from ``vocab_files_names``. Raises as above."""
    look_inside(path)
    found = _VOCABULARY.search(path.read_bytes().decode("utf-8", "replace"))
    return re.findall(r""":\s*["']([\w.-]+)["']""", found[1]) if found else []


def read_flow_modules(path: Path) -> list[str]:
    """The modules that the flow model's configuration imports, without HyperPyYAML. Raises as above."""
    look_inside(path)
    text = path.read_bytes().decode("utf-8", "replace")
    if not re.search(r"(?m)^[\"']?flow[\"']?\s*:", text):
        raise DamagedError("has no section flow; download it again")
    return _MODULE.findall(text)


def unfinished_downloads(folder: Path) -> list[str]:
    """Leftovers of interrupted downloads by huggingface_hub, modelscope, aria2 and browsers, relative to ``folder``."""
    patterns = (
        ".cache/huggingface/download/*.incomplete",
        ".cache/huggingface/download/*/*.incomplete",
        "._____temp/*.*",
        "._____temp/*/*",
        *(f"{below}*.{ending}" for below in ("", "*/") for ending in ("incomplete", "aria2", "part", "crdownload")),
    )
    return sorted({str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)})


def digest(path: Path) -> bytes:
    """SHA-256 of a small file's bytes, or of a large file's size and samples of it, first and last bytes included.

    A safetensors file begins, and a zip file ends, with the directory of its tensors.
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
