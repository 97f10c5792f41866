"""Free space that the daemon keeps back: outputs and results must leave room for the journal on the disk."""

from __future__ import annotations

import os
from pathlib import Path

#: No more of a disk, and of its inodes, than this part is kept back.
_PART = 10
_INODES = 1_000


def above(folder: Path, keep_free: int, *, for_results: bool = False) -> int:
    """Bytes that may be written to the folder's disk so that ``keep_free`` bytes, or a tenth of it, stay free.

    Results may take half of what outputs and voices leave. Negative if there are fewer already. Raises OSError.
    """
    disk = os.statvfs(folder)
    # Some file systems have no fixed number of inodes, and say 0.
    if disk.f_files and disk.f_favail <= min(_INODES, disk.f_files // _PART):
        return 0
    kept = min(keep_free, disk.f_blocks * disk.f_frsize // _PART)
    return disk.f_bavail * disk.f_frsize - (kept // 2 if for_results else kept)
