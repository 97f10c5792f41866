"""The rest of the text of a job that comes in pieces."""

from __future__ import annotations

from .connection import SupervisorConnection


class TextFeed:
    """Hands the texts that come for a job to its engine, and counts the messages with them."""

    def __init__(self, job: str, connection: SupervisorConnection) -> None:
        self._job = job
        self._connection = connection
        #: The number of messages that were taken, and whether the last of all was among them.
        self.taken = 0
        self.complete = False

    def __call__(self) -> str | None:
        """The text that came since the last call; ``""`` if none did; None if none will come."""
        texts = [] if self.complete else self._connection.take_texts(self._job)
        self.taken += len(texts)
        self.complete = self.complete or any(message.last for message in texts)
        text = "".join(message.text for message in texts)
        return None if self.complete and not text else text
