"""Batch files as Windows, Excel and PowerShell write them: taken where that is certain, else one error for the file."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.client.cli.batch.contents import WrongFile, read_batch
from glmtts.client.cli.batch.file import BadLine, BatchLine

ROWS = [{"uttid": "a1", "syn_text": "今天天气不错。"}, {"uttid": "a2", "syn_text": "Hello there."}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
BOM = b"\xef\xbb\xbf"


def read(data: bytes, name: str = "b.jsonl") -> list[BatchLine | BadLine]:
    return read_batch(io.BytesIO(data), Path(name))


def texts(data: bytes) -> list[str]:
    return [line.text if isinstance(line, BatchLine) else line.reason for line in read(data)]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        BOM + TEXT.encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\n").encode() + b"\x1a",
        TEXT.replace("}\n", "},\n").encode(),
        json.dumps(ROWS, indent=2).encode(),
        json.dumps(ROWS).encode("utf-16"),
        b"[\n" + TEXT.replace("}\n", "},\n").encode() + b"]\n",
        "".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    ],
)
def test_a_file_of_another_encoding_line_end_or_layout_is_read_where_that_is_certain(data: bytes) -> None:
    assert texts(data) == ["今天天气不错。", "Hello there."]


@pytest.mark.parametrize("between", [BOM, b"\n" + BOM, b"\x1a", b"\x1a" + BOM, b""])
def test_files_that_were_joined_are_read_whole(between: bytes) -> None:
    assert texts(TEXT.rstrip().encode() + between + TEXT.encode()) == ["今天天气不错。", "Hello there."] * 2


def docx() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TEXT.encode("gbk"), "It looks like GBK or GB18030"),
        (TEXT.encode("gbk"), "今天天气不错"),
        (TEXT.encode("gbk"), "iconv -f gb18030 -t utf-8 'my file' > batch.jsonl"),
        (TEXT.replace("今天天气不错", "今天天氣不錯，我們去爬山").encode("big5"), "It looks like Big5"),
        (TEXT.replace("今天天气不错", "こんにちは、元気ですか").encode("shift-jis"), "It looks like Shift-JIS"),
        ('{"syn_text": "안녕하세요"}\n'.encode("euc-kr"), "It looks like EUC-KR"),
        (TEXT.replace("今天天气不错。", "Un café").encode("latin-1"), "It looks like Windows-1252 or Latin-1"),
        (TEXT.encode() + TEXT.encode("utf-16-le"), "zero bytes from line 3 on"),
        (TEXT.encode("utf-16")[:-1], "damaged at byte"),
        (b"uttid,syn_text\na1,hello\n", "csv.DictReader"),
        (b"uttid\tsyn_text\na1\thello\n", "a table (TSV)"),
        ("你好。\nHello, you.\n".encode(), "plain text"),
        (b"# A title\n\nA text, with commas.\n", "plain text"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", "subtitles"),
        (b"<html><p>Hello</p></html>", "HTML or XML"),
        (b"{'syn_text': 'Hello'}\n", "double quotes"),
        (json.dumps(ROWS, indent=2).encode()[:-20], "damaged JSON"),
        (b'["a", "b"]', "jq -c '.[] | {syn_text: .}' 'my file' > batch.jsonl"),
        (json.dumps({"items": ROWS}).encode(), "jq -c '.items[]' 'my file' > batch.jsonl"),
        (b'{"content": "a"}\n{"content": "b"}\n', "the keys of the first are content"),
        (gzip.compress(TEXT.encode(), mtime=0), "gunzip -c 'my file' > batch.jsonl"),
        (docx(), "a document (.docx)"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a recording"),
    ],
)
def test_a_file_that_is_no_batch_gets_one_error_with_the_way_to_convert_it(data: bytes, words: str) -> None:
    with pytest.raises(WrongFile) as caught:
        read(data, "my file")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"syn_text": "x', "not valid JSON"),
        ('{"syn_text": "今"}'.encode()[:-3] + b'"}', "not valid UTF-8"),
        (b"[1]", "not a JSON object"),
    ],
)
def test_a_few_damaged_lines_spoil_no_others(bad: bytes, words: str) -> None:
    found = read((TEXT * 3).encode() + bad + b"\n" + TEXT.encode())
    assert [line.number for line in found] == list(range(1, 10))
    damaged = found[6]
    assert isinstance(damaged, BadLine)
    assert words in damaged.reason
    assert sum(isinstance(line, BatchLine) for line in found) == 8


@given(st.binary() | st.text().map(str.encode) | st.text(alphabet='[]{}",:a1 \n\r\0\ufeff').map(str.encode))
def test_no_file_whatever_it_holds_is_met_with_another_error(data: bytes) -> None:
    try:
        read(data)
    except WrongFile as wrong:
        assert "b.jsonl" in str(wrong)
