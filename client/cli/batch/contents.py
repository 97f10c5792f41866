"""The lines of a batch file as people have it: other encodings, line ends and layouts than JSONL in UTF-8.

Whatever is certain is taken: UTF-16 and UTF-32, line ends of any system, byte order marks, Ctrl-Z at the end, commas
after lines, an array or pretty-printed objects. An encoding is never guessed, and neither is a table or a plain text
taken for a batch: the file is refused as a whole, before a word of it is spoken, with the command that converts it.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import BinaryIO

from glmtts.protocol.text_encodings import conversion, utf16_of

from .file import NO_TEXT, BadLine, BatchLine, read_lines

#: A larger file is none that was written for a batch: 10 million lines of 100 bytes.
MAX_BYTES = 1 << 30
_HEAD_BYTES = 4096

_EXAMPLE = '{"uttid": "a1", "syn_text": "你好"}'
_OFFICE = "Save it as plain text or as CSV (UTF-8) in its program, and make a batch of that"
_NO_TEXT = f"A batch has a line such as {_EXAMPLE} for each job"
#: Files that are no text, by their first bytes: what they are, and how to get at the text. ``{file}`` is quoted.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip", "Unpack it: gunzip -c {file} > batch.jsonl"),
    (b"BZh", "compressed with bzip2", "Unpack it: bunzip2 -c {file} > batch.jsonl"),
    (b"\xfd7zXZ\0", "compressed with xz", "Unpack it: xz -dc {file} > batch.jsonl"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it: zstd -dc {file} > batch.jsonl"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it: 7z x {file}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an old Microsoft Office (.doc, .xls)", _OFFICE),
    (b"%PDF-", "a PDF", "Take the text out of it, and make a batch of that: pdftotext {file} text.txt"),
    (b"{\\rtf", "a document in RTF", _OFFICE),
    (
        b"SQLite format 3\0",
        "a database of SQLite",
        "Take the texts out of it: sqlite3 -json {file} 'SELECT ...' > batch.json",
    ),
    (b"PAR1", "a Parquet table", "Write it as JSONL (pandas: to_json(orient='records', lines=True))"),
    (b"RIFF", "a recording", _NO_TEXT),
    (b"fLaC", "a recording", _NO_TEXT),
    (b"OggS", "a recording", _NO_TEXT),
    (b"ID3", "a recording", _NO_TEXT),
    (b"\x89PNG", "a picture", _NO_TEXT),
    (b"\xff\xd8\xff", "a picture", _NO_TEXT),
    (b"\x7fELF", "a program", _NO_TEXT),
)
_BETWEEN = re.compile(r"[\s,\ufeff\x1a]*")
#: Bytes that are not UTF-8, as Python keeps them in a string.
_DAMAGED = re.compile("[\udc80-\udcff]")
_LINE_END = re.compile(r"\r\n|\r|\n")
#: Bytes of which a third or more is zero in UTF-16.
_ZEROS_SEEN = 24
_FROM_CSV = (
    "python3 -c 'import csv,json,sys; [print(json.dumps(row, ensure_ascii=False)) for row in "
    "csv.DictReader(sys.stdin{dialect})]' < {file} > batch.jsonl; its first line names the columns, such as "
    "uttid,syn_text"
)
_FROM_LINES = "jq -cR 'select(test(\"\\\\S\")) | {syn_text: .}'"


class WrongFile(Exception):
    """The whole file is no batch; the message says what it looks like and how to convert it."""


def read_batch(file: BinaryIO, path: Path) -> list[BatchLine | BadLine]:
    """Every line of a batch file, or every element of its array. Raises WrongFile, OSError."""
    head = file.read(_HEAD_BYTES)
    _check_kind(head, path)
    data = head + file.read(MAX_BYTES - len(head) + 1)
    if len(data) > MAX_BYTES:
        raise WrongFile(f"{path}: more than {MAX_BYTES >> 30} GiB, which is no batch; cut it up (split -l 100000)")
    lines = _LINE_END.split(_decode(data, path))
    found = read_lines(map(_raw, lines))
    strange = sum(isinstance(line, BadLine) and not line.is_object for line in found)
    # Objects over several lines, or an array? A batch with a few damaged lines is neither.
    objects = _objects("\n".join(lines)) if strange else []
    if objects:
        found = read_lines(map(_raw, map(json.dumps, objects)))
    elif strange * 2 > len(found):
        raise WrongFile(f"{path}: {_looks_like(lines, path)}")
    if found and all(isinstance(line, BadLine) and line.reason.startswith(NO_TEXT) for line in found):
        raise WrongFile(f"{path}: {_no_text(objects, lines, path)}")
    return found


def _raw(line: str) -> bytes:
    # Bytes that were no UTF-8 are what they were.
    return line.encode("utf-8", "surrogateescape")


def _check_kind(head: bytes, path: Path) -> None:
    """Raise WrongFile for a file that is no text."""
    kinds = [(what, do) for magic, what, do in _MAGIC if head.startswith(magic)]
    if head.startswith(b"PK\x03\x04"):
        document = next((name for mark, name in _ZIPPED if mark in head), "")
        kinds = [(f"a document ({document})", _OFFICE) if document else ("a zip archive", "Unpack it: unzip {file}")]
    for what, do in kinds:
        raise WrongFile(f"{path} is {what}, and no JSONL. {do.replace('{file}', shlex.quote(str(path)))}")


_ZIPPED = (
    (b"word/", ".docx"),
    (b"xl/", ".xlsx"),
    (b"ppt/", ".pptx"),
    (b"opendocument", ".odt or .ods"),
    (b"epub", ".epub"),
)


def _decode(data: bytes, path: Path) -> str:
    """The text. A few lines that are not UTF-8 keep their bytes, as surrogates. Raises WrongFile."""
    if encoding := utf16_of(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            raise WrongFile(
                f"{path} looks like {encoding.upper()} and is damaged at byte {error.start + 1}; write it anew as UTF-8"
            ) from None
    else:
        _check_zeros(data, path)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = _almost_utf8(data, path)
    # Programs of DOS end a text with Ctrl-Z, and files that were joined have such and byte order marks between them.
    return re.sub("(^|[\r\n])[\ufeff\x1a]+", r"\1", text.rstrip().rstrip("\x1a"))


def _check_zeros(data: bytes, path: Path) -> None:
    """Raise WrongFile for a text in UTF-8 that goes on in UTF-16."""
    at = 0
    while (at := data.find(b"\0", at)) >= 0:
        if data[at : at + _ZEROS_SEEN].count(0) * 3 > _ZEROS_SEEN:
            raise WrongFile(
                f"{path}: zero bytes from line {data[:at].count(10) + 1} on: that part of the file is UTF-16, as "
                "PowerShell's >> appends it. Write the file anew as UTF-8 (Out-File -Append -Encoding utf8)"
            )
        at += _ZEROS_SEEN


def _almost_utf8(data: bytes, path: Path) -> str:
    """A text in UTF-8 with a few damaged lines; an encoding that it is not in has far more of these."""
    text = data.decode("utf-8", "surrogateescape")
    beyond = [line for line in _LINE_END.split(text) if not line.isascii()]
    damaged = [line for line in beyond if _DAMAGED.search(line)]
    if len(damaged) * 4 <= len(beyond):
        return text
    raise WrongFile(f"{path}: not UTF-8. {conversion(data, _raw(damaged[0]), path, 'batch.jsonl')}")


def _objects(text: str) -> list[dict[str, object]]:
    """The objects of an array, or objects one after the other in any layout; none if it is something else."""
    decoder = json.JSONDecoder()
    text = text.strip()
    if text.startswith("["):
        text = text[1:].removesuffix("]")
    objects: list[dict[str, object]] = []
    at = 0
    while (next_one := _BETWEEN.match(text, at)) and next_one.end() < len(text):
        try:
            value, at = decoder.raw_decode(text, next_one.end())
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict) or _DAMAGED.search(text, next_one.end(), at):
            return []
        objects.append(value)
    return objects


def _no_text(objects: list[dict[str, object]], lines: list[str], path: Path) -> str:
    """Words for objects without a text: their keys have other names, or they are deeper in the file."""
    first = (
        objects[0] if objects else json.loads(next(line for line in lines if line.strip()).rstrip().removesuffix(","))
    )
    keys = ", ".join(key if key.isprintable() else repr(key) for key in list(first)[:10])[:200] or "none"
    inner = next((key for key, value in first.items() if isinstance(value, list)), "")
    do = f".{inner}[]" if inner.isidentifier() else "{syn_text: .KEY}"
    return (
        f"{NO_TEXT}, and no line or object has it; the keys of the first are {keys}. Make a batch of it with: "
        f"jq -c '{do}' {shlex.quote(str(path))} > batch.jsonl"
    )


def _looks_like(lines: list[str], path: Path) -> str:
    """What a text that is no batch looks like, and how to make a batch of it."""
    file = shlex.quote(str(path))
    filled = [line.strip() for line in lines if line.strip()][:100]
    first = filled[0]
    if re.search(r"^\d\d:\d\d(:\d\d)?[,.]\d{3} --> ", "\n".join(filled), re.MULTILINE):
        return (
            "subtitles (SRT or WebVTT), and no JSONL. To make a job of each line: "
            f"grep -vE '^[0-9]+\\r?$|-->|^WEBVTT' {file} | {_FROM_LINES} > batch.jsonl"
        )
    if first.startswith("<"):
        return f"HTML or XML, and no JSONL. A batch has a line such as {_EXAMPLE} for each job"
    if first.startswith("{'"):
        return "Python's own notation and no JSON, which has double quotes: write each line with json.dumps(...)"
    if first.startswith(("{", "[")):
        try:
            value = json.loads("\n".join(lines))
        except (ValueError, RecursionError) as error:
            what = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
            return f"damaged JSON ({what}). Write it anew, or correct it there"
        strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
        do = f"jq -c '.[] | {{syn_text: .}}' {file}" if strings else f"jq -c '.KEY[]' {file}"
        return f"JSON, but neither lines nor an array of objects such as {_EXAMPLE}. Make one: {do} > batch.jsonl"
    for separator, name, dialect in (
        ("\t", "TSV", ', delimiter="\\t"'),
        (",", "CSV", ""),
        (";", "CSV", ', delimiter=";"'),
    ):
        if _is_table(filled, separator):
            return f"a table ({name}), and no JSONL. Convert it: {_FROM_CSV.format(dialect=dialect, file=file)}"
    return (
        f"plain text, and no JSONL. To make a job of each line: {_FROM_LINES} {file} > batch.jsonl (or speak it as a "
        f"whole: glmttsctl say - < {file})"
    )


def _is_table(lines: list[str], separator: str) -> bool:
    """Whether the first line names columns, and the others have as many."""
    columns = [name.strip(' "') for name in lines[0].split(separator)]
    if len(columns) < 2 or not all(re.fullmatch(r"[\w -]{1,40}", name) for name in columns):
        return False
    return all(line.count(separator) >= len(columns) - 1 for line in lines[1:])
