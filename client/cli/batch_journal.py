"""What a batch has done so far, in its output folder: by this it goes on where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .failures import Failure

NAME = ".glmtts-batch.jsonl"


def digest_of(values: dict[str, Any]) -> str:
    """A digest of everything that an output is made from: another text, voice or format is another digest."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Journal:
    """One record per finished output, appended when the output is in place; a lock keeps a second batch out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._file: BinaryIO
        self._digests: dict[str, str] = {}

    def __enter__(self) -> Journal:
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Failure(
                f"{self._folder}: another batch writes there; wait for it, or choose another folder"
            ) from None
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def has(self, name: str, digest: str) -> bool:
        """Whether the output ``name`` is there, made from what ``digest`` stands for."""
        return self._digests.get(name) == digest and (self._folder / name).is_file()

    def add(self, name: str, digest: str, **facts: Any) -> None:
        """The output ``name`` is in place."""
        record = {"output": name, "digest": digest, **facts}
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._digests[name] = digest

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            try:
                record = json.loads(line)
                self._digests[record["output"]] = record["digest"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: its line is spoken again
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")
