"""Texts that come in pieces, as a language model makes them: read in a thread, while the caller reads the audio."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

#: Characters of pieces that are sent together, where several have come; and that are read ahead.
_TOGETHER = 2_000
_AHEAD = 20_000


#: The end of a sentence or of a line, with the quotes and brackets that close with it.
SENTENCE_END = re.compile(r"""[。！？!?;；…\n]["'”’」』）)\]]*\s*|\.["'”’)\]]*\s+""")
#: Seconds without more text after which a sentence that has ended is spoken: the next one takes longer to write.
PAUSE_S = 0.4


def ends_sentence(text: str) -> bool:
    """Whether a text that may go on looks whole."""
    return not text[-1:].isalnum() and SENTENCE_END.search(text[-8:] + " ") is not None


class _Flush(str):
    """See :data:`FLUSH`."""


#: As a piece of a text: speak what has come, although it is no whole sentence, or more could belong to the last one.
FLUSH = _Flush()


def checked(piece: object) -> str:
    """A piece. Raises TypeError for anything but a string."""
    if not isinstance(piece, str):
        raise TypeError(f"text: its pieces have to be strings, and one is {type(piece).__name__}")
    return piece


async def each(pieces: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    """The pieces without the empty ones. One that has to be waited for does not hold up the event loop."""
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            if checked(piece) or piece is FLUSH:
                yield piece
    elif isinstance(pieces, list | tuple):
        for piece in pieces:
            if checked(piece) or piece is FLUSH:
                yield piece
    else:
        import asyncio

        iterator, end = iter(pieces), object()
        while (found := await asyncio.to_thread(next, iterator, end)) is not end:
            if checked(found) or found is FLUSH:
                yield checked(found)


class PieceReader:
    """Owns a thread that reads the pieces, and wakes the caller at ``fileno`` when there are some."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[str] = deque()
        self._characters = 0
        self._ended = self._told_end = self._closed = False
        self._problem: BaseException | None = None
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._thread = threading.Thread(target=self._read, args=(iter(pieces),), name="glmtts text", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """The descriptor that can be read when there are pieces."""
        return self._read_end

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self._pieces) or (self._ended and not self._told_end)

    def take(self) -> tuple[str, bool, bool]:
        """The pieces that are there, or the first of many; whether these are to be flushed, and are the last.

        Raises whatever the iterable has raised.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 4_096)
        with self._changed:
            taken: list[str] = []
            size = 0
            flush = False
            while self._pieces and not flush and (not taken or size + len(self._pieces[0]) <= _TOGETHER):
                taken.append(self._pieces.popleft())
                size += len(taken[-1])
                flush = taken[-1] is FLUSH
            self._characters -= size
            self._changed.notify()
            last = self._ended and not self._pieces
            if last and self._problem is not None:
                raise self._problem
            self._told_end = self._told_end or last
        return "".join(taken), flush, last

    def close(self) -> None:
        """Read no more. A thread that waits for the next piece ends when it comes."""
        with self._changed:
            if not self._closed:
                self._closed = True
                os.close(self._read_end)
                self._changed.notify()

    def _read(self, pieces: Iterator[str]) -> None:
        problem: BaseException | None = None
        try:
            for piece in pieces:
                if (checked(piece) or piece is FLUSH) and not self._add(piece):
                    break
        except BaseException as error:
            problem = error
        with self._changed:
            self._ended, self._problem = True, problem
        self._wake()
        os.close(self._write_end)

    def _add(self, piece: str) -> bool:
        """Add a piece, when there is room for it. Returns whether more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._characters < _AHEAD)
            if self._closed:
                return False
            self._pieces.append(piece)
            self._characters += len(piece)
        self._wake()
        return True

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full, and so can be read; or nothing reads it any more
            os.write(self._write_end, b"\0")
