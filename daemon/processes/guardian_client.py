"""The daemon's guardian (guardian.py): starting it before the first worker, and letting it go when all is over."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys

from . import guardian

#: The variables that the interpreter itself may need; the guardian gets no others, and never the boot token.
_NEEDED = ("LD_LIBRARY_PATH", "PATH")


class Guardian:
    """Owns at most one guardian process, which ends all processes that carry ``token`` when the daemon is gone."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._popen: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    @property
    def pid(self) -> int | None:
        """None when there is none."""
        return None if self._popen is None else self._popen.pid

    def ensure(self) -> None:
        """Start one unless there is one. Raises OSError.

        A guardian that ended is replaced within seconds, not at once: it might end again immediately.
        """
        self.reap()
        if self._popen is not None:
            return
        read_end, write_end = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__],
                stdin=read_end,
                # A program that reads the daemon's output to the end must not wait for the guardian.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _NEEDED if name in os.environ},
                start_new_session=True,
                cwd="/",
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(write_end)
            raise OSError(not_started(sys.executable, error)) from None
        finally:
            os.close(read_end)
        self._pipe = write_end
        # No child inherits the write end: the pipe is closed when the daemon ends.
        with contextlib.suppress(BrokenPipeError):
            os.write(write_end, self._token.encode())

    def reap(self) -> None:
        """Reap a guardian that was killed."""
        if self._popen is not None and self._popen.poll() is not None:
            self._popen = None
            os.close(self._pipe)

    def dismiss(self, *, clean: bool) -> None:
        """The daemon ends. Unless it is ``clean``, the guardian stays to end the processes that are left."""
        if self._popen is None:
            return
        if clean:
            self._popen.kill()
        os.close(self._pipe)
        if clean:
            self._popen.wait()
        else:
            # It ends by itself after this process, its parent, is gone, so there is no zombie to reap.
            self._popen.returncode = 0
        self._popen = None


def not_started(program: str, error: Exception) -> str:
    """Why a process of ``program`` could not be started, and what to do."""
    match getattr(error, "errno", None):
        case errno.EAGAIN:
            return (
                "no more processes can be made: raise the limit of this user (ulimit -u, LimitNPROC=) or of the "
                "control group (TasksMax=, --pids-limit), or end other processes"
            )
        case errno.ENOMEM:
            return "no memory for another process: free some, or raise its limit (ulimit -v, MemoryMax=)"
        case errno.EMFILE | errno.ENFILE:
            return "no descriptor is left for another process: raise the limit of open files (LimitNOFILE=, ulimit -n)"
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return f"the interpreter {program} can't be started: {reason}"
