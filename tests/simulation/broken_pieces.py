"""Cores that lose a text which comes in pieces, or wait for it without end."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core.scheduling.text_pieces import TextPieces
from glmtts.daemon.core.workers.process import Process

Patch = pytest.MonkeyPatch


def texts_without_end_waited_for(patch: Patch) -> None:
    patch.setattr(TextPieces, "_wait_for_more", lambda *_: None)


def text_that_crosses_the_news_of_its_lack_forgotten(patch: Patch) -> None:
    suspend = Process.suspend

    def without_text(self: Process, job: str, **keys: Any) -> None:
        suspend(self, job, **keys)
        if keys.get("without_text") is False and job not in self.without_text:
            self.without_text.append(job)

    patch.setattr(Process, "suspend", without_text)


def pieces_spoken_twice(patch: Patch) -> None:
    send = TextPieces._send

    def all_of_it(self: TextPieces, job: Any, pieces: Any) -> None:
        job.attempt.sent = 0
        send(self, job, pieces)

    patch.setattr(TextPieces, "_send", all_of_it)
