"""Standard input that is spoken while it grows: cut into jobs, each within the length that the daemon takes."""

from __future__ import annotations

import codecs
import os
import select
from collections.abc import Iterator

import click

from glmtts.client import FLUSH
from glmtts.client.pieces import PAUSE_S, SENTENCE_END, ends_sentence
from glmtts.protocol import texts
from glmtts.protocol.text_encodings import conversion, utf16_of

_READ_BYTES = 65_536
#: The first bytes, by which UTF-16 and UTF-32 are recognised; and those that a text in UTF-8 can't have there.
_HEAD_BYTES = 8
_NO_UTF8 = b"\xff\xfe\0"


class GrowingText:
    """Reads a descriptor while its text comes. :meth:`wait` and :meth:`pieces` are called in turn."""

    def __init__(self, descriptor: int, *, longest: int, patience_s: float) -> None:
        """``longest``: characters of a job. ``patience_s``: without text for so long the daemon takes it as whole."""
        self._descriptor = descriptor
        self._longest = longest
        self._keep_open_s = patience_s / 2
        self._decoder: codecs.IncrementalDecoder | None = None
        self._head = b""
        #: What was read and belongs to no job yet.
        self._text = ""
        self._spoke = False
        self._ended = False

    def wait(self) -> bool:
        """Wait for something to speak. Returns False at the end of the input.

        Raises click.UsageError for an input without a word, and for one that is not UTF-8.
        """
        while not texts.has_words(self._text):
            if self._ended:
                if not self._spoke:
                    raise click.UsageError(f"text: {texts.NOTHING_TO_SPEAK}.")
                return False
            # Of marks without a word there may be any number.
            self._text = (self._text[-self._longest :] + self._read()).lstrip()
        return True

    def pieces(self) -> Iterator[str]:
        """The text of one job, as it comes. Raises click.UsageError for one that is not UTF-8."""
        self._spoke = True
        left, sent, flushed = self._longest, "", False
        while self._text or not self._ended:
            if self._text:
                sent = self._take(left)
                left, flushed = left - len(sent), False
                yield sent
                if self._text or not left:
                    return  # the rest is for the next job
            ends = ends_sentence(sent)
            if self._ended or self._comes(PAUSE_S if ends and not flushed else self._keep_open_s):
                self._text = "" if self._ended else self._read()
            elif ends and not flushed:
                flushed = True
                yield FLUSH
            else:
                # People pause for longer than the daemon waits. A blank more is not heard, and keeps the job open.
                left -= 1
                yield " "
            if left < (self._longest // 10 if ends else 1):
                return

    def _take(self, left: int) -> str:
        """What has come; where that is more than ``left`` characters, up to the end of a sentence, or of a word."""
        text = self._text
        if len(text) > left:
            ends = [match.end() for match in SENTENCE_END.finditer(text, 0, left)]
            text = text[: ends[-1] if ends else text.rfind(" ", 0, left) + 1 or left]
        self._text = self._text[len(text) :]
        return text

    def _comes(self, wait_s: float) -> bool:
        return bool(select.select([self._descriptor], [], [], wait_s)[0])

    def _read(self) -> str:
        # Not by sys.stdin: a thread that waits in it would hold its lock at the end of the program.
        data = os.read(self._descriptor, _READ_BYTES)
        self._ended = not data
        try:
            if self._decoder is None:
                data = self._head = self._head + data
                if len(data) < _HEAD_BYTES and not self._ended and any(byte in data for byte in _NO_UTF8):
                    return ""
                self._decoder = codecs.getincrementaldecoder(utf16_of(data) or "utf-8")()
            return self._decoder.decode(data, final=self._ended).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = data[max(0, data.rfind(b"\n", 0, error.start)) :].strip().partition(b"\n")[0]
            raise click.UsageError(f"The text is not valid UTF-8. {conversion(data, line, '-')}") from None
