"""The record of a batch in its output folder, by which the next run continues where this one stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from ..failures import Failure

NAME = ".glmtts-batch.jsonl"


def digest_of(values: dict[str, Any]) -> str:
    """A digest of everything that an output is made from: another text, voice or format is another digest."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class ProgressFile:
    """Has a record for each finished output, appended when the output is in place; a lock keeps a second batch out.

    It also makes the idempotency keys of durable jobs. An output keeps its key until the end of its job is recorded,
    and then gets another: a failed job or a deleted output is spoken again, nothing else is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._file: BinaryIO
        self._digests: dict[str, str] = {}
        self._ended: Counter[str] = Counter()
        self._batch = ""

    def __enter__(self) -> ProgressFile:
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Failure(
                f"{self._folder}: another batch is writing there. Wait for it, or choose another folder."
            ) from None
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, name: str, digest: str) -> bool:
        """Whether the output ``name`` exists and was made from the values of ``digest``."""
        return self._digests.get(name) == digest and (self._folder / name).is_file()

    def add(self, name: str, digest: str, **facts: Any) -> None:
        """The output ``name`` is in place."""
        self._append({"output": name, "digest": digest, **facts})
        self._digests[name] = digest
        self._ended[name] += 1

    def spent(self, name: str, code: str) -> None:
        """The job of ``name`` has ended without an output, or its result is lost: the next job needs another key."""
        self._append({"ended": name, "code": code})
        self._ended[name] += 1

    def key(self, name: str, digest: str) -> str:
        """The idempotency key for the job of ``name``.

        It contains a random number of this folder, so that a batch of the same lines elsewhere shares no job with this
        one.
        """
        if not self._batch:
            self._batch = secrets.token_hex(16)
            self._append({"batch": self._batch})
            # On disk before the first job has it: with a key that is lost, its line is spoken twice.
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
                continue  # cut off by a crash: the line is spoken again
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
