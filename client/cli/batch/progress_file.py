"""What a batch has done so far, in its output folder: by this it goes on where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..failures import Failure

NAME = ".glmtts-batch.jsonl"


def digest_of(values: dict[str, Any]) -> str:
    """A digest of everything that an output is made from: another text, voice or format is another digest."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Journal:
    """One record per finished output, appended when the output is in place; a lock keeps a second batch out.

    It also gives the idempotency keys of durable jobs: the same one for an output until its job has ended and that was
    recorded, then another, so that what failed or was thrown away is spoken anew and nothing else is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._file: BinaryIO
        self._digests: dict[str, str] = {}
        self._ended: Counter[str] = Counter()
        self._batch = ""

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
        self._append({"output": name, "digest": digest, **facts})
        self._digests[name] = digest
        self._ended[name] += 1

    def spent(self, name: str, code: str) -> None:
        """The job of ``name`` has ended without an output, or its result is lost: its key is of no more use."""
        self._append({"ended": name, "code": code})
        self._ended[name] += 1

    def key(self, name: str, digest: str) -> str:
        """The idempotency key for the job of ``name``.

        It has the folder's own number in it: another folder's batch of the same lines shares nothing with this one.
        """
        if not self._batch:
            self._batch = secrets.token_hex(16)
            self._append({"batch": self._batch})
            # Before the first job has it: a key that is forgotten is a line that is spoken twice.
            os.fsync(self._file.fileno())
        whole = json.dumps([self._batch, name, digest, self._ended[name]])
        return f"batch-{hashlib.sha256(whole.encode()).hexdigest()[:48]}"

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: its line is asked for again
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def _take(self, record: dict[str, Any]) -> None:
        if "batch" in record:
            self._batch = str(record["batch"])
        elif "ended" in record:
            self._ended[record["ended"]] += 1
        else:
            self._digests[record["output"]] = record["digest"]
            self._ended[record["output"]] += 1
