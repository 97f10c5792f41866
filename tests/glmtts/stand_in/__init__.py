"""A stand-in for a checkout of GLM-TTS, written from scratch, that an engine can't tell from upstream.

``checkout/`` has upstream's own modules, with its functions, arguments and bad habits; ``packages/`` what upstream
imports from elsewhere, and the words that make it go wrong (mischief.py). It needs torch and numpy, loads in a second
and speaks a segment in a tenth. What it speaks is a tone of the pitch of the reference recording, as loud as that,
whose length and shape follow from the text, the seed and all that upstream's speech depends on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def make_root(folder: Path, python: str = sys.executable) -> Path:
    """Lay out a root that can be run, in ``folder``, which must not be there yet, and return it."""
    for part in ("checkout", "packages"):
        shutil.copytree(_HERE / part, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "LICENSE").write_text("A stand-in for tests, under the licence of the project that it is part of.\n")
    (folder / "requirements.txt").write_text("torch\nnumpy\n")
    subprocess.run([python, "-W", "ignore", str(_HERE / "weights.py"), str(folder)], check=True)
    return folder
