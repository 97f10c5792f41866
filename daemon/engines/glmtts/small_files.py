"""The small files of a checkout and its checkpoint, read as far as it takes to know that upstream can read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .checkpoint_files import DamagedError, look_inside

#: The files of a tokenizer, in its code; what a configuration of HyperPyYAML imports.
_VOCABULARY = re.compile(r"vocab_files_names\s*(?::[^=]*)?=\s*\{([^}]*)\}")
_MODULE = re.compile(r"!(?:new|name|apply):([A-Za-z_][\w.]*)\.\w+")


def _check_lines(path: Path, keys: tuple[str, ...], *, blank: bool) -> None:
    """Whether each line is a JSON object with ``keys``: people edit these files, and a wrong line fails every text."""
    if path.stat().st_size:  # somebody who wants no replacements empties it
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
            raise DamagedError(f"has no JSON object{wanted} in line {number}: correct the line, or take it out")


def check_custom_replacements(path: Path) -> None:
    _check_lines(path, ("origin", "new"), blank=False)


def check_phoneme_replacements(path: Path) -> None:
    _check_lines(path, (), blank=True)


def read_vocabulary_names(path: Path) -> list[str]:
    """The files that a tokenizer's code says it reads, as the class attribute of transformers has them."""
    look_inside(path)
    found = _VOCABULARY.search(path.read_bytes().decode("utf-8", "replace"))
    return re.findall(r""":\s*["']([\w.-]+)["']""", found[1]) if found else []


def read_flow_modules(path: Path) -> list[str]:
    """The modules that the flow model's configuration names; HyperPyYAML itself is not here to read it."""
    look_inside(path)
    text = path.read_bytes().decode("utf-8", "replace")
    if not re.search(r"(?m)^[\"']?flow[\"']?\s*:", text):
        raise DamagedError("has no section flow; download it again")
    return _MODULE.findall(text)
