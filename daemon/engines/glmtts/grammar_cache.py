"""The compiled grammar of upstream's Chinese normaliser, built once for all workers, in the cache folder.

Upstream builds it at every start, which takes a minute, into site-packages and without a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ... import malloc

_PACKAGES = ("WeTextProcessing", "pynini")


class SharedGrammar:
    """Owns the grammars in ``cache_dir``, a folder for each set of options and package versions."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        try:
            cache_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"{cache_dir}: the workers' cache folder can't be made: {error.strerror}; it is in [daemon] state_dir"
            ) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by one worker at a time; the kernel releases it when the process ends."""
        with (self._cache_dir / "glmtts.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def shared(self, normalizer: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a normaliser's class so that it builds a grammar only once. Use it under :meth:`lock`."""

        def make(**options: Any) -> Any:
            del options["overwrite_cache"]
            folder = self._cache_dir / f"grammar-{_digest(options)}"
            if folder.is_dir():
                try:
                    return normalizer(cache_dir=str(folder), overwrite_cache=False, **options)
                except Exception as error:
                    print(f"{folder}: the grammar can't be read and is rebuilt: {error}", file=sys.stderr)
                    shutil.rmtree(folder)
            return self._build(normalizer, folder, options)

        return make

    def _build(self, normalizer: Callable[..., Any], folder: Path, options: dict[str, Any]) -> Any:
        print("building the grammar of the Chinese normaliser, once for all workers: about a minute", file=sys.stderr)
        for left in self._cache_dir.glob("building-*"):
            shutil.rmtree(left, ignore_errors=True)
        built = Path(tempfile.mkdtemp(prefix="building-", dir=self._cache_dir))
        made = normalizer(cache_dir=str(built), overwrite_cache=True, **options)
        # The compiler takes gigabytes.
        malloc.trim()
        built.chmod(0o755)
        for file in built.iterdir():
            _flush(file)
        built.rename(folder)
        return made


def _flush(file: Path) -> None:
    """Write to disk before the folder gets its name, so that a power failure can't leave empty files."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _digest(options: dict[str, Any]) -> str:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    text = json.dumps([options, versions], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
