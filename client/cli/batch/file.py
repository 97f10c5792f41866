"""Batch files: the two JSONL dialects of GLM-TTS front ends, read line by line, and safe names for their outputs.

Upstream's lines have ``uttid, prompt_text, prompt_speech, syn_text``, the web interfaces' ``prompt_text, prompt_audio,
input_text, output_name``. Both may also have ``voice``, ``seed``, ``speed`` and ``label``, and the prompt may be left
out. Unknown keys are ignored, as upstream does. Nothing here opens a file.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from glmtts.protocol.audio_formats import FORMAT_OF_SUFFIX, AudioFormat, suffix_of
from glmtts.protocol.requests import MAX_LABEL, MAX_SEED, MAX_SPEED, MIN_SPEED
from glmtts.protocol.texts import TextError, speakable, transcript

_TEXT_KEYS = ("syn_text", "input_text", "text")
NO_TEXT = f"no text: one of {', '.join(_TEXT_KEYS)} is needed"
_PROMPT_KEYS = ("prompt_speech", "prompt_audio")
_NAME_KEYS = ("uttid", "output_name")

#: NAME_MAX of Linux file systems is 255 bytes; this leaves room for a number, a suffix and a temporary name.
_MAX_NAME_BYTES = 180


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line that can be spoken. ``prompt`` is the recording's path as the file gives it, ``name`` the output's."""

    number: int
    text: str
    name: str = ""
    voice: str | None = None
    prompt: str | None = None
    prompt_text: str | None = None
    seed: int | None = None
    label: str | None = None
    speed: float | None = None


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line that can't be spoken, and why; ``is_object``: it is a JSON object at least."""

    number: int
    reason: str
    is_object: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """A line to speak: its request, and the name of its output. ``recording_bytes`` is the size of its prompt."""

    number: int
    name: str
    digest: str
    text: str
    request: dict[str, Any]
    recording_bytes: int = 0


class _Wrong(Exception):
    """What is wrong with a line."""


class _NoObjectError(_Wrong):
    """A line that is no JSON object."""


def read_lines(lines: Iterable[bytes]) -> list[BatchLine | BadLine]:
    """Every line of a batch file, numbered from 1, blank ones left out. A bad line spoils no other."""
    result: list[BatchLine | BadLine] = []
    for number, raw in enumerate(lines, 1):
        content = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not content.strip():
            continue
        try:
            result.append(_read_line(number, content))
        except _Wrong as wrong:
            result.append(BadLine(number, str(wrong), not isinstance(wrong, _NoObjectError)))
    return result


def _read_line(number: int, raw: bytes) -> BatchLine:
    try:
        # A comma after a line comes from an array.
        value = json.loads(raw.decode().rstrip().removesuffix(","))
    except UnicodeDecodeError as error:
        raise _NoObjectError(f"not valid UTF-8 (at byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:
        raise _NoObjectError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise _NoObjectError('not a JSON object; a line looks like {"uttid": "a1", "syn_text": "你好"}')
    text = _string(value, _TEXT_KEYS, blank=True)
    if text is None:
        raise _Wrong(NO_TEXT)
    prompt, prompt_text = _string(value, _PROMPT_KEYS), _string(value, ("prompt_text",), blank=True)
    if prompt and not prompt_text:
        raise _Wrong("prompt_text: missing; it is what is said in the recording")
    voice = _string(value, ("voice",))
    if voice and prompt:
        raise _Wrong("voice: not together with a prompt recording; give one of the two")
    key = "text"
    try:
        speakable(text)
        if prompt and prompt_text:
            key = "prompt_text"
            transcript(prompt_text)
    except TextError as error:
        raise _Wrong(f"{key}: {error}") from None
    return BatchLine(
        number=number,
        text=text,
        name=_string(value, _NAME_KEYS) or "",
        label=_label(value),
        speed=_speed(value),
        voice=voice,
        prompt=prompt,
        prompt_text=prompt_text if prompt else None,
        seed=_seed(value),
    )


def _string(value: dict[str, Any], keys: tuple[str, ...], *, blank: bool = False) -> str | None:
    """The one of ``keys`` that is there, None if it is absent, empty or, unless ``blank``, of blanks alone.

    A number does as an ``uttid``.
    """
    given = [key for key in keys if value.get(key) not in (None, "")]
    if not given:
        return None
    if len(given) > 1:
        raise _Wrong(f"both {given[0]} and {given[1]}: give one of the two")
    item = value[given[0]]
    if given[0] in _NAME_KEYS and type(item) is int:
        return str(item)
    if not isinstance(item, str):
        raise _Wrong(f"{given[0]}: expected a string")
    return item if blank or item.strip() else None


def _label(value: dict[str, Any]) -> str | None:
    """The caption of the line's job: its ``label``, else its name."""
    words = _string(value, ("label",)) or _string(value, _NAME_KEYS) or ""
    return "".join(c if c.isprintable() else " " for c in words)[:MAX_LABEL].strip() or None


def _seed(value: dict[str, Any]) -> int | None:
    seed = value.get("seed")
    if seed is None:
        return None
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise _Wrong(f"seed: expected a whole number from 0 to {MAX_SEED}")
    return seed


def _speed(value: dict[str, Any]) -> float | None:
    speed = value.get("speed")
    if speed is None:
        return None
    if type(speed) not in (int, float) or not MIN_SPEED <= speed <= MAX_SPEED:
        raise _Wrong(f"speed: expected a number from {MIN_SPEED:g} to {MAX_SPEED:g}")
    return float(speed)


class OutputNames:
    """Gives each output a plain file name of its own: none leads out of the folder, no line overwrites another.

    The names depend only on the lines and their order, so that a second run finds the files of the first.
    """

    def __init__(self, format: AudioFormat | None) -> None:
        self._format = format
        self._taken: set[str] = set()

    def give(self, line: BatchLine) -> tuple[str, AudioFormat]:
        """The file name of ``line``'s output, with its suffix, and its format."""
        stem, suffix = _split(_safe(line.name))
        format = self._format or FORMAT_OF_SUFFIX.get(suffix, "wav")
        if FORMAT_OF_SUFFIX.get(suffix) != format:
            suffix = suffix_of(format)
        stem = _cut(stem) or f"line-{line.number:06}"
        name, count = stem + suffix, 1
        # Compared without case: a folder may lie on a file system that doesn't tell A.wav from a.wav.
        while name.casefold() in self._taken:
            count += 1
            name = f"{stem}-{count}{suffix}"
        self._taken.add(name.casefold())
        return name, format


def _safe(name: str) -> str:
    """``name`` as one plain file name, which may be empty: separators and control characters become ``_``."""
    cleaned = "".join("_" if c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cs", "Cf") else c for c in name)
    return cleaned.strip().lstrip(".").strip()


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix, the suffix being one of an audio format's or empty: ``a.b`` has none."""
    for suffix in FORMAT_OF_SUFFIX:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def _cut(stem: str) -> str:
    return stem.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip()
