"""What a worker says on its stderr: lines with a priority in front, as in sd-daemon(3), which the daemon's log goes by.

Behind it may stand the job that the line is about: ``<4>[job b-1] words``. A line without one is of unknown making
once jobs are spoken: an engine, or a library below it, may print what it was given. The daemon logs such lines at
debug level alone. So whoever writes here vouches for his words: nothing above DEBUG has anything in it of what was to
be spoken, nor an exception's own words, which may quote it.
"""

from __future__ import annotations

import sys
import traceback

from ..engines.cuda_errors import judge

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7

#: So much is said of an exception that the driver or torch has raised, and of so many that one was raised from.
_MOST, _DEEPEST = 500, 8


def say(priority: int, text: str, job: str = "") -> None:
    """Print ``text`` as one line, with its priority and the job that it is about."""
    about = f"[job {job}] " if job else ""
    print(f"<{priority}>{about}{' '.join(text.split())}", file=sys.stderr)


def report(error: BaseException, job: str = "") -> None:
    """Say where an exception was raised, the innermost first; and what it says itself at debug level."""
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
    """The path below this package, or the last parts of another path: enough to find the file."""
    _, package, path = file.rpartition("/glmtts/")
    return path if package else "/".join(file.split("/")[-3:])


def in_words(error: BaseException) -> str:
    """An exception's type, and what it says if it says anything."""
    words = str(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def safe_words(error: BaseException) -> str:
    """What a log may say of an exception that is not ours: of CUDA's errors all, of others their type."""
    if judge(error):
        return in_words(error)[:_MOST]
    return f"{type(error).__name__}; its own words may quote the text, and are logged at debug level alone"
