"""Errors of the system and ends of processes are told in words, with what to do where that is known."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from glmtts.protocol.system_words import error_in_words, exit_in_words


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_no_error_is_a_bare_number(number: int) -> None:
    words = error_in_words(OSError(number, os.strerror(number), "/a/file"))
    assert words.startswith(f"/a/file: {os.strerror(number)}")
    assert "Errno" not in words and f"{number}" not in words.removeprefix("/a/file: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit of open files"),
        (OSError("words of our own"), "words of our own"),
        (OSError(), "OSError"),
        (OSError(errno.EACCES, None), "Permission denied"),
        (OSError(errno.ENOENT, "No such file or directory", b"/a\xff"), "'/a\\udcff': No such file"),
        (ValueError("odd"), "odd"),
        (KeyError(), "KeyError"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
    ],
)
def test_an_error_has_its_words_and_a_way_out(error: Exception, words: str) -> None:
    assert words in error_in_words(error)


def test_a_process_that_can_not_be_made_is_told_apart_from_a_call_to_repeat() -> None:
    error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    assert "no more processes or threads may be made" in error_in_words(error, starting=True)
    assert "processes" not in error_in_words(error)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-11, "killed by SIGSEGV"),
        (-123, "killed by signal 123"),
        (137, "exited with status 137 (SIGKILL in a process that it had started)"),
        (255, "exited with status 255"),
    ],
)
def test_an_end_names_its_signal(status: int, words: str) -> None:
    assert exit_in_words(status) == words
