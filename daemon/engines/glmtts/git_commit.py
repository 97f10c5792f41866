"""The commit of a checkout, read from its ``.git`` as it lies on the disk: git need not be installed, nor trust us.

See gitrepository-layout(5): ``HEAD`` is a commit or names a ref, which is a file or a line of ``packed-refs``. In a
worktree or a submodule ``.git`` is a file that says where the folder is, and refs may be in a common one.
"""

from __future__ import annotations

import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_LARGEST = 8 << 20


def commit_of(root: Path) -> str | None:
    """The full commit that is checked out in ``root``; None where that is no git checkout, or one without a commit."""
    try:
        folder = _git_folder(root)
        head = _read(folder / "HEAD")
        if not head.startswith("ref: "):
            return head if _COMMIT.fullmatch(head) else None
        ref = head.removeprefix("ref: ").strip()
        if ".." in ref or not ref.startswith("refs/"):
            return None
        common = _common_folder(folder)
        for place in (folder / ref, common / ref):
            if place.is_file():
                commit = _read(place)
                return commit if _COMMIT.fullmatch(commit) else None
        return _packed(common / "packed-refs", ref)
    except (OSError, ValueError):
        return None


def _git_folder(root: Path) -> Path:
    git = root / ".git"
    if git.is_file():
        return root / _read(git).removeprefix("gitdir:").strip()
    return git


def _common_folder(folder: Path) -> Path:
    """Where a worktree's refs are, as its ``commondir`` says."""
    file = folder / "commondir"
    return folder / _read(file) if file.is_file() else folder


def _packed(file: Path, ref: str) -> str | None:
    for line in _read(file).splitlines():
        commit, _, name = line.partition(" ")
        if name == ref and _COMMIT.fullmatch(commit):
            return commit
    return None


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_LARGEST).decode().strip()
