"""Mistakes in TOML files, in the words of TOML, for every program that reads some."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, Literal, get_args, get_origin


def key_in_toml(name: str) -> str:
    """A key as TOML writes it: an unusual one in quotes and cut."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) else quoted(name[:80])


def quoted(text: str) -> str:
    """A string as TOML writes it, on one line whatever characters it has."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def syntax(message: str) -> str:
    """tomllib's message with the place in front."""
    if match := re.fullmatch(r"(?s)(.*) \(at line (\d+), column (\d+)\)", message):
        return f"line {match[2]}, column {match[3]}: not TOML: {_lower(match[1])}"
    if message.endswith(" (at end of document)"):
        return f"at its end: not TOML: {_lower(message.removesuffix(' (at end of document)'))}"
    return f"not TOML: {_lower(message)}"


_TYPE_NAMES = {
    "str": "a string in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def expectation(message: str, value: Any, expected: Any) -> str:
    """msgspec's message about ``value``, which is not of the type ``expected``, in the words of TOML."""
    message, _, place = message.partition(" - at ")
    message = message.replace(" | null", "")  # TOML has no null
    if get_origin(expected) is Literal:
        allowed = [str(choice) for choice in get_args(expected)]
        nearest = difflib.get_close_matches(value.lower(), allowed, 1, 0.5) if isinstance(value, str) else []
        hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
        return f"expected one of {', '.join(json.dumps(a) for a in allowed)}, got {shown(value)}{hint}"
    within = ""
    if (match := re.search(r"\[(\d+)\]", place)) and isinstance(value, list):
        within, value = f" as item {int(match[1]) + 1}", value[int(match[1])]
    if match := re.fullmatch(r"Expected `(\w+)`(?: ([<>]=?) (\S+?)(?:\.0)?)?(?:, got `\w+`)?", message):
        bound = f" {match[2]} {match[3]}" if match[2] else ""
        return f"expected {_TYPE_NAMES.get(match[1], match[1])}{bound}{within}, got {shown(value)}"
    # The message may quote a key of the file, with any characters.
    plain = message if message.isprintable() else quoted(message)[1:-1]
    return f"{_lower(plain)}{within}, got {shown(value)}"


def shown(value: Any) -> str:
    """A value on one short line."""
    if isinstance(value, str):
        return quoted(value) if len(value) <= 60 else f"{quoted(value[:57])}..."
    if isinstance(value, int) and abs(value) >= 2**64:
        # Python refuses to print integers of thousands of digits.
        return "a number beyond 64 bits"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return kind(value)


def kind(value: Any) -> str:
    """The name of a value's type."""
    for type_, words in ((dict, "a table"), (list, "a list"), (str, "a string"), (bool, "true or false")):
        if isinstance(value, type_):
            return words
    return "a number" if isinstance(value, int | float) else "a date or time"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
