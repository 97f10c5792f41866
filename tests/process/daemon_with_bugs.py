"""The daemon with bugs in its core and in its shell, which certain texts meet: run by test_daemon_bugs.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from glmtts.daemon import supervisor
from glmtts.daemon.core.api.client_requests import ClientRequests
from glmtts.daemon.core.scheduling.dispatcher import Dispatcher
from glmtts.daemon.core.scheduling.notifications import Notifications
from glmtts.daemon.transport.worker_router import WorkerRouter
from glmtts.protocol import worker as wire


class Bug(Exception):
    """A bug of the test's making."""


def raising(method: Callable[..., Any], words: str, text_of: Callable[..., str]) -> Callable[..., Any]:
    """``method``, which raises where the text of what it is called with has these words."""

    def wrapped(*arguments: Any, **keys: Any) -> Any:
        if words in text_of(*arguments, **keys):
            raise Bug(words)
        return method(*arguments, **keys)

    return wrapped


def told(_: WorkerRouter, effect: Any) -> str:
    """What a worker is to be told to speak."""
    return effect.message.text if isinstance(effect.message, wire.SpeakJob) else ""


# mypy takes no other function for a method.
Dispatcher._message = raising(Dispatcher._message, "not made", lambda _, __, text: text)  # type: ignore[method-assign]
ClientRequests._admit = raising(ClientRequests._admit, "not admitted", lambda _, __, request: request.text)  # type: ignore[method-assign]
Notifications.note = raising(Notifications.note, "not noted", lambda _, __, job: job.request.text)  # type: ignore[method-assign]
WorkerRouter.tell = raising(WorkerRouter.tell, "not told", told)  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(supervisor.main())
