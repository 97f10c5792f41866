"""The rest of the text of a job that comes in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from glmtts.protocol.worker import AddText


class TextFeed:
    """Keeps the texts that come for a job until its engine takes them, and counts the messages with them."""

    def __init__(self, look: Callable[[], None]) -> None:
        """``look``: reads the messages that have arrived, which may :meth:`add` one."""
        self._look = look
        self._texts: deque[AddText] = deque()
        #: The number of messages that were taken, and whether the last of all was among them.
        self.taken = 0
        self.complete = False

    def add(self, message: AddText) -> None:
        """Keep a text that has come."""
        self._texts.append(message)

    @property
    def has_text(self) -> bool:
        """Whether there is a text that the engine has not taken."""
        return bool(self._texts)

    def __call__(self) -> str | None:
        """The next text; ``""`` while none has come; None after the last.

        One message at a time, so that segments do not depend on when the texts come: a stream can be replayed.
        """
        if self.complete:
            return None
        self._look()
        if not self._texts:
            return ""
        message = self._texts.popleft()
        self.taken += 1
        self.complete = message.last
        return None if message.last and not message.text else message.text
