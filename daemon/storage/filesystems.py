"""File systems on the network, which have no locks or no shared memory that SQLite could trust."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
#: Types as the kernel names them; those of FUSE are ``fuse.`` and the program's name.
_OF_THE_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ncpfs"}
    | {"coda", "orangefs", "pvfs2", "vboxsf", "davfs", "ocfs2", "gfs2", "panfs", "wekafs", "daos", "prl_fs"}
)
#: FUSE's own programs for local disks.
_LOCAL_FUSE = frozenset(
    {"fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.bindfs", "fuse.ntfs-3g", "fuse.ext2fs", "fuse.gocryptfs"}
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_filesystem(path: Path) -> str:
    """The type of the file system of ``path``, or of the folder in which it would be made, if it is on the network.

    ``""`` for a local one, and where that can't be found out.
    """
    try:
        place = os.path.realpath(path)
        mounts = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = ("", "")
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if len(parts) < 5 or not rest:
            continue
        folder = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), parts[4])
        # A later mount on the same folder hides the earlier one.
        if len(folder) >= len(found[0]) and (place == folder or place.startswith(folder.rstrip("/") + "/")):
            found = (folder, rest.split(" ")[0])
    return found[1] if found[1] in _OF_THE_NETWORK or _is_fuse_of_the_network(found[1]) else ""


def _is_fuse_of_the_network(type_: str) -> bool:
    return type_.startswith("fuse.") and type_ not in _LOCAL_FUSE
