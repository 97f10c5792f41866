"""Reading a file that another user, or another program, may have put in the place of the expected one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class UnusableFileError(OSError):
    """The file is not of the expected kind; ``strerror`` says why."""

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        super().__init__(errno.EINVAL, why, os.fspath(path))


def read_file(
    path: str | os.PathLike[str], max_bytes: int, *, follow: bool = False, own: bool = False, like: Path | None = None
) -> bytes:
    """The whole content of a regular file; never waits for a pipe, and never reads a device.

    Args:
        max_bytes: refuse a larger file.
        follow: whether the path may end in a symbolic link.
        own: refuse a file of another user.
        like: refuse a file that has any other names but ``path`` and this one.

    Raises:
        UnusableFileError: it is no such file, or changed while it was read.
        OSError: it can't be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        # A link (ELOOP), or a socket (ENXIO).
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UnusableFileError(path, "not a regular file") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError(path, "not a regular file")
        if own and status.st_uid != os.geteuid():
            raise UnusableFileError(path, f"belongs to user {status.st_uid}")
        if like is not None and not (status.st_nlink == 2 and os.path.samestat(status, like.lstat())):
            raise UnusableFileError(path, "another file, or one with further names")
        if status.st_size > max_bytes:
            raise UnusableFileError(path, f"has {status.st_size} bytes, and at most {max_bytes} are read")
        data = file.read(status.st_size)
    if len(data) != status.st_size:
        raise UnusableFileError(path, "was cut while it was read")
    return data
