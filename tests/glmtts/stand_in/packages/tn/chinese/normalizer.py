"""A Chinese normaliser that compiles a grammar into a folder, without a lock, as WeTextProcessing does."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

from mischief import befall

_BUILD_S = 0.5
_DIGITS = "零一二三四五六七八九"
_INTERJECTIONS = "呃啊"
_FULL_TO_HALF = {
    code: code - 0xFEE0 for code in [*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B)]
}


class OverlapError(RuntimeError):
    """Two builds into one folder at a time: with the real one, either could read half of the other's files."""


class Normalizer:
    def __init__(
        self,
        cache_dir: str | None = None,
        overwrite_cache: bool = False,
        remove_interjections: bool = True,
        remove_erhua: bool = True,
        traditional_to_simple: bool = True,
        remove_puncts: bool = False,
        full_to_half: bool = True,
        tag_oov: bool = False,
    ) -> None:
        del traditional_to_simple, remove_puncts, tag_oov
        self._removed = (_INTERJECTIONS if remove_interjections else "") + ("儿" if remove_erhua else "")
        self._full_to_half = full_to_half
        folder = Path(cache_dir) if cache_dir else Path(__file__).parent.parent
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "zh_tn_tagger.fst", folder / "zh_tn_verbalizer.fst"]
        # One more handler at each load.
        logger = logging.getLogger("wetext-zh_normalizer")
        logger.addHandler(logging.StreamHandler())
        if overwrite_cache or not all(file.exists() for file in files):
            logger.warning("building fst for zh_normalizer ...")
            _build(folder, files)
        for file in files:
            if file.read_text() != "compiled":
                raise RuntimeError(f"Fst.read: {file} is damaged")

    def normalize(self, text: str) -> str:
        befall(text)
        text = "".join(c for c in text if c not in self._removed)
        if self._full_to_half:
            text = text.translate(_FULL_TO_HALF)
        return re.sub(r"[0-9]", lambda digit: _DIGITS[int(digit[0])], text)


def _build(folder: Path, files: list[Path]) -> None:
    mark = folder / "building"
    try:
        mark.open("x").close()
    except FileExistsError:
        raise OverlapError(f"another process builds the grammar in {folder}") from None
    try:
        for file in files:
            file.write_text("compi")
            time.sleep(_BUILD_S / len(files))
            file.write_text("compiled")
        with (folder / "builds").open("a") as log:
            log.write(f"{os.getpid()}\n")
    finally:
        mark.unlink()
