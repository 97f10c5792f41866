"""A worker's log lines on stderr, with the priorities of sd-daemon(3): ``<4>[job b-1] words``.

The daemon logs lines without a priority at debug level only, because an engine, or a library below it, may print the
text that it was given. Lines written here keep that promise: above DEBUG they contain no text of a job, and no message
of an exception, which may quote one.
"""

from __future__ import annotations

import sys
import traceback

from ..engines.cuda_errors import fatal_kind

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7

#: Most characters of an exception's message, and most exceptions of a chain of causes.
_MOST, _DEEPEST = 500, 8


def say(priority: int, text: str, job: str = "") -> None:
    """Print ``text`` as one line, with its priority and its job."""
    about = f"[job {job}] " if job else ""
    print(f"<{priority}>{about}{' '.join(text.split())}", file=sys.stderr)


def report(error: BaseException, job: str = "") -> None:
    """Log where an exception and its causes were raised, the first cause first; their messages at debug level."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain and len(chain) < _DEEPEST:
        chain.append(one)
        one = one.__cause__ or one.__context__
    for one in reversed(chain):
        frames = reversed(traceback.extract_tb(one.__traceback__))
        places = [f"{_module(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames]
        say(WARNING, f"{type(one).__name__}, raised at {' < '.join(places)}", job)
        say(DEBUG, f"{type(one).__name__}: {one}", job)


def _module(file: str) -> str:
    """The path below this package, or the last three parts of another path."""
    _, package, path = file.rpartition("/glmtts/")
    return path if package else "/".join(file.split("/")[-3:])


def in_words(error: BaseException) -> str:
    """An exception's type, with its message if it has one."""
    words = str(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def safe_words(error: BaseException) -> str:
    """An exception for the log: with its message if that quotes no text, as of a CUDA error; else by its type."""
    if fatal_kind(error) or getattr(error, "quotes_nothing", False):
        return in_words(error)[:_MOST]
    return f"{type(error).__name__}; its message may quote the text and is logged at debug level only"
