"""What the daemon stands on and others may remove: its folders, files and programs; and the end of one out of reach."""

from __future__ import annotations

from ..inputs import SurroundingsSeen
from ..state import State
from .lifecycle import Lifecycle

#: For how long a daemon out of reach tries to be found again before it ends; shorter where a service manager starts it
#: again with a folder of its own.
OUT_OF_REACH_S, OUT_OF_REACH_MANAGED_S = 600.0, 60.0
#: For how long another daemon has to hold the runtime folder: one that is refused holds it for a moment.
TAKEN_S = 15.0
#: Seconds until a daemon that still speaks looks again.
_AGAIN_S = 10.0
#: The exit status (EX_UNAVAILABLE), after which a service manager starts the daemon again.
_STATUS = 69
_TIMER = ("reach", "")


class Surroundings:
    """Owns the alerts about the daemon's surroundings, and since when no new client can find it.

    A daemon that clients can't find holds GPU memory for nothing, so in the end it stops. It goes on while it speaks:
    clients that are connected still get their speech.
    """

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._context, self._alerts = state.context, state.alerts
        self._job_table, self._queue = state.job_table, state.queue
        self._managed = state.installation.managed
        self._lifecycle = lifecycle
        self._seen = SurroundingsSeen({})

    def on_seen(self, event: SurroundingsSeen) -> None:
        """Raise and clear alerts, and note whether the daemon can be found."""
        before, self._seen = self._seen, event
        for name in {**before.problems, **event.problems}:
            self._alerts.set(f"surroundings.{name}", event.problems.get(name, ""))
        timers, now = self._context.timers, self._context.now
        if not event.out_of_reach:
            timers.cancel(_TIMER)
        elif not before.out_of_reach or before.taken != event.taken:
            patience_s = OUT_OF_REACH_MANAGED_S if self._managed else OUT_OF_REACH_S
            timers.set(_TIMER, now + (TAKEN_S if event.taken else patience_s))

    def on_late(self) -> None:
        """Clients have not found the daemon for long: stop, unless it speaks for those that are connected."""
        if self._lifecycle.stopping:
            return
        # A replacement is there, or comes: accepted jobs are finished within drain_timeout_s.
        if not (self._seen.taken or self._managed) and self._speaks():
            self._context.timers.set(_TIMER, self._context.now + _AGAIN_S)
            return
        reason = next(iter(self._seen.problems.values()), "")
        self._context.log("error", "daemon ends because clients can't find it", reason=reason)
        self._lifecycle.stop("a runtime folder out of reach", status=_STATUS)

    def _speaks(self) -> bool:
        """Whether a job is spoken, or will be without an operator."""
        live = self._job_table.live.values()
        return any(job not in self._queue or not (self._queue.paused or self._queue.is_held(job)) for job in live)
