"""One job in the worker: its request and its state."""

from __future__ import annotations

import time
from collections.abc import Callable

from glmtts.protocol.worker import SpeakJob

from ..engines.base import Handle, Piece
from .speech import Speech
from .text_feed import TextFeed


class Job:
    """A job from its message to its end. The wire sets the marks, at any time; the runner acts on them between steps.

    It waits for a slot, is begun, and has a handle when it is prepared. It may then be suspended, and wait for a slot
    again when it is to resume.
    """

    def __init__(self, message: SpeakJob, body: bytes | None, look: Callable[[], None]) -> None:
        self.message = message
        self.body = body
        self.id = message.job
        self.feed = TextFeed(look) if message.more else None
        # The marks.
        self.cancelled = self.to_suspend = False
        self.begun_at: float | None = None
        self.handle: Handle | None = None
        #: Whether the engine has ended it.
        self.over = False
        self.speech: Speech | None = None
        self.suspended = self.resumes = False
        #: Whether the engine has it suspended for a moment, while its audio can't be sent.
        self.held = False
        #: Whether it has spoken all text that came, and whether it is at the end of a segment that is not the last.
        self.waits = self.at_boundary = False
        #: The number of its tasks in a helper thread.
        self.pending = 0
        #: Whether its audio is being delivered, which is not cancelled.
        self.ends = False

    def begin(self) -> None:
        """Start the job's time, because it has a slot."""
        self.begun_at = time.perf_counter()

    def goes_on(self, piece: Piece) -> bool:
        """Whether there is more behind this piece's segment."""
        return piece.segment + 1 < piece.segments or (self.feed is not None and not self.feed.complete)

    @property
    def lacks_text(self) -> bool:
        """Whether it can't go on before more of its text comes."""
        return self.waits and self.feed is not None and not self.feed.has_text

    @property
    def work_s(self) -> float:
        """The seconds of engine time that the job took so far."""
        return self.handle.work_s if self.handle else 0.0
