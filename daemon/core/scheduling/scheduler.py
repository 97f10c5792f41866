"""Builds the parts that decide about jobs, and holds them. It decides nothing itself."""

from __future__ import annotations

from ..state import State
from .admission import Admission
from .completion import Completion
from .dispatcher import Dispatcher
from .durable import DurableJobs
from .forecast import Forecast
from .notifications import Notifications
from .output_shares import OutputShares
from .retry import Retries
from .text_pieces import TextPieces
from .worker_messages import WorkerMessages


class Scheduler:
    """Holds them; it decides nothing itself."""

    def __init__(self, state: State) -> None:
        self.forecast = Forecast(state)
        self.notifications = Notifications(state, self.forecast)
        self.output_shares = OutputShares(state)
        self.completion = Completion(state, self.output_shares)
        self.retries = Retries(state, self.completion)
        self.durable_jobs = DurableJobs(state, self.completion)
        self.dispatcher = Dispatcher(
            state,
            completion=self.completion,
            retries=self.retries,
            forecast=self.forecast,
            notifications=self.notifications,
            output_shares=self.output_shares,
        )
        self.worker_messages = WorkerMessages(
            state,
            dispatcher=self.dispatcher,
            completion=self.completion,
            retries=self.retries,
            durable_jobs=self.durable_jobs,
            notifications=self.notifications,
        )
        self.text_pieces = TextPieces(state, self.completion)
        self.admission = Admission(state, self.forecast, self.output_shares)
