"""What the running daemon has read: commands that work on its files ask it, since only it knows which they are."""

from __future__ import annotations

from typing import NamedTuple

from .session import Session
from .ui.output import plain


class InForce(NamedTuple):
    """``file``: the daemon's configuration by its absolute path, empty for the built-in defaults. ``state_dir``: where
    it keeps what outlives it, which its environment may have decided.
    """

    file: str
    state_dir: str

    @property
    def environment(self) -> dict[str, str]:
        """For the daemon's code in another process: its state folder, unless the file names one."""
        return {"STATE_DIRECTORY": self.state_dir} if self.state_dir else {}


def ask(run: Session, timeout_s: float) -> InForce:
    """Ask over the control socket. Raises GlmttsError."""
    with run.control(timeout_s) as control:
        answer = plain(control.call("config"))
    return InForce(str(answer.get("file") or ""), str(answer.get("state_dir") or ""))
