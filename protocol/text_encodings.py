"""Encodings of text files other than UTF-8: UTF-16 and UTF-32, which are certain, and others, which are suggested."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Where the first two characters, if they are ASCII as in JSON and TOML, have their zero bytes (RFC 4627, section 3).
_ZEROS = (
    (re.compile(rb"[^\0]\0\0\0[^\0]\0\0\0"), "utf-32-le"),
    (re.compile(rb"\0\0\0[^\0]\0\0\0[^\0]"), "utf-32-be"),
    (re.compile(rb"[^\0]\0[^\0]\0"), "utf-16-le"),
    (re.compile(rb"\0[^\0]\0[^\0]"), "utf-16-be"),
)
_KANA = ("\u3040", "\u30ff")
_HANGUL = ("\uac00", "\ud7a3")
#: Encodings to suggest, in the order in which they are tried: how iconv and people call them; and, where a text in
#: another one decodes as well, the letters that have to be there, and their least share beyond ASCII.
_ENCODINGS: tuple[tuple[str, str, tuple[str, str] | None, float], ...] = (
    ("euc-kr", "EUC-KR", _HANGUL, 0.8),
    ("shift-jis", "Shift-JIS", _KANA, 0.3),
    ("euc-jp", "EUC-JP", _KANA, 0.3),
    ("gb2312", "GBK or GB18030", None, 0.0),
    ("big5", "Big5", None, 0.0),
    ("gb18030", "GBK or GB18030", None, 0.0),
)
_SAMPLE = 30
#: Characters from which on a text in EUC-KR differs from one in GBK.
_ENOUGH = 5


def utf16_of(data: bytes) -> str:
    """The encoding of a text in UTF-16 or UTF-32, by its mark or its zero bytes; ``""`` for any other."""
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    return encoding or next((name for zeros, name in _ZEROS if zeros.match(data)), "")


def conversion(data: bytes, line: bytes, file: Path | str, to: str = "") -> str:
    """What a text that is not UTF-8 looks like, and how to convert it: by a person, because the guess may be wrong.

    Args:
        line: A line of it that has characters beyond ASCII, as a sample.
        file: Its path, ``-`` for standard input.
        to: The name of the converted file.
    """
    out = "" if file == "-" else f" {shlex.quote(str(file))}{f' > {to}' if to else ''}"
    if encoding := utf16_of(data):
        # iconv writes UTF-16LE where Python writes UTF-16-LE.
        name = encoding.replace("-le", "le").replace("-be", "be")
        return f"It is UTF-16 or UTF-32; convert it: iconv -f {name} -t utf-8{out}"
    encoding, name = _likely_encoding(data)
    if not encoding:
        return (
            "It is in no encoding that is recognised: save it as UTF-8 in the program that wrote it, or convert it from"
            f" its encoding: iconv -f ENCODING -t utf-8{out}"
        )
    sample = "".join(c if c.isprintable() else " " for c in line.decode(encoding, "replace"))
    start = max(0, next((i for i, c in enumerate(sample) if not c.isascii()), 0) - 5)
    return (
        f'It looks like {name}, as which it says "{sample[start : start + _SAMPLE]}". If that reads well, convert it: '
        f"iconv -f {encoding} -t utf-8{out}"
    )


def _likely_encoding(data: bytes) -> tuple[str, str]:
    """A name for iconv and one for people; empty without a likely one."""
    beyond = re.findall(rb"[\x80-\xff]+", data)
    if sum(len(run) == 1 for run in beyond) > 0.8 * len(beyond):  # letters between ASCII, as in "caf\xe9"
        return "windows-1252", "Windows-1252 or Latin-1"
    for encoding, name, letters, share in _ENCODINGS:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        strange = [c for c in text if not c.isascii()]
        if letters is None:
            return encoding.replace("gb2312", "gb18030"), name
        if len(strange) >= _ENOUGH and sum(letters[0] <= c <= letters[1] for c in strange) >= share * len(strange):
            return encoding, name
    return "", ""
