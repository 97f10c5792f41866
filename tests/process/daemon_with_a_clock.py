"""The daemon on a machine whose clock is set by a file, which has the seconds that it is ahead: run by
test_daemon_clocks.py."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_FILE = Path(os.environ["CLOCK_IS_AHEAD"])
_right = time.time


def _set() -> float:
    return _right() + float(_FILE.read_text() or 0.0)


time.time = _set

if __name__ == "__main__":
    from glmtts.daemon import supervisor

    sys.exit(supervisor.main())
