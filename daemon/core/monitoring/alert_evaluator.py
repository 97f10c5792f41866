"""Applies the rules of alert_table.py to the daemon's figures, every few seconds while the daemon has work."""

from __future__ import annotations

from collections import deque

from ..scheduling.completion import Completion
from ..shares import TABLES, owner_of
from ..state import State
from .alert_rules import FAILURES, FAULTS, Condition, Figures, Finding, GpuFigures, Totals
from .alert_table import ALERTS

#: The window is exact to one part in this many.
_STEPS = 60


class AlertEvaluator:
    """Owns the counters of the last minutes, and for each alert since when its rule has said the same."""

    def __init__(self, state: State, completion: Completion) -> None:
        self._context, self._queue, self._alerts = state.context, state.queue, state.alerts
        self._pool, self._autoscaler, self._gpus = state.pool, state.autoscaler, state.gpus
        self._completion, self._removals = completion, state.removals
        self._conditions: dict[tuple[str, str], Condition] = {}
        #: Earlier values of the counters, the oldest first: one from before the window, and those within it.
        self._past: deque[tuple[float, Totals]] = deque([(state.context.now, Totals())])

    def judge(self) -> None:
        """Raise and clear alerts, and judge again later unless the daemon is idle and well."""
        settings, now = self._context.settings.alerts, self._context.now
        figures = self.figures()
        for name, alert in ALERTS.items():
            if alert.rule is None:
                continue
            raise_s, clear_s = alert.raise_after(settings), alert.clear_after(settings)
            # A worker or GPU that is gone is well.
            gone = [Finding(of, False) for known, of in self._conditions if known == name]
            findings = {finding.of: finding for finding in (*gone, *alert.rule(figures, settings))}
            for of, finding in findings.items():
                key = (name, of)
                condition = self._conditions.get(key)
                if condition is None:
                    if finding.bad is not True:
                        continue
                    condition = self._conditions[key] = Condition()
                raised = condition.judge(finding, now, raise_s, clear_s)
                if finding.bad is True or not raised:
                    self._alerts.set(f"{name}.{of}" if of else name, finding.message if raised else "")
                if not raised and finding.bad is not True:
                    del self._conditions[key]
        if figures.lately != Totals() or figures.waiting or self._conditions:
            self._context.stir()

    def figures(self) -> Figures:
        """The present input of the rules."""
        settings = self._context.settings
        now = self._context.now
        totals = self._totals()
        window_s = settings.alerts.window_s
        past = self._past
        if now - past[-1][0] >= window_s / _STEPS:
            past.append((now, totals))
        while len(past) > 1 and past[1][0] <= now - window_s:
            past.popleft()
        return Figures(
            lately=totals.since(past[0][1]),
            waiting=self._queue.length("vip") + self._queue.length("interactive"),
            warn_waiting=settings.queue.warn_waiting,
            serving=self._pool.serving,
            wanted=0 if self._pool.stopping else self._autoscaler.wanted,
            gpus={
                index: GpuFigures(used, total, self._gpus.lately_xid(index, now - window_s))
                for index, used, total in self._gpus.memory()
            },
            trends={
                worker.name: trend
                for worker in self._pool.workers.values()
                if worker.serving and (trend := worker.process.watch.trend) is not None
            },
            # Without the customer, whose name a gateway may have from anywhere.
            loser=(owner_of(loser[0]), TABLES[loser[1]].words) if (loser := self._removals.last) else ("", ""),
        )

    def _totals(self) -> Totals:
        counters, outcomes = self._context.counters, self._completion.outcomes
        refused = counters.refused
        heard = (counters.duration["vip"], counters.duration["interactive"])
        turned_away = refused.get("unavailable", 0)
        return Totals(
            responses=sum(histogram.count for histogram in heard),
            response_s=sum(histogram.total for histogram in heard),
            ended=sum(outcomes.values()) + turned_away,
            failed=sum(outcomes.get(code, 0) for code in FAILURES) + turned_away,
            spoken=counters.real_time_factor.count,
            synthesis_s=counters.synthesis_s,
            audio_s=counters.spoken_s,
            faults=sum(counters.deaths[cause] for cause in FAULTS),
            removed=self._removals.total,
        )
