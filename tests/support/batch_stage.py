"""A simulated machine whose one worker speaks for many jobs at once, in its time."""

from __future__ import annotations

from typing import Any

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import worker as wire

from .core_world import MEMORY, World

#: Seconds of one step of the engine.
STEP_S = 0.05


class BatchStage:
    """A World whose worker has several slots, and shares the time of its engine among the jobs in them.

    A character takes ``PACE_S`` of the engine's time; with ``fixed_steps`` of the time that passes, as a step takes as
    long for many as for one. A text that begins with ``h`` is heavy: of each step it takes
    three times the part of another, as one does whose voice costs more. A job that is to be suspended stops at the next
    step.
    """

    PACE_S = 0.01

    def __init__(self, slots: int, *, fixed_steps: bool = False, **sections: Any) -> None:
        self.world = World(**sections)
        self.world.ready(slots=slots)
        self.jobs: dict[str, wire.SpeakJob] = {}
        self.running: list[str] = []
        self.suspended: list[str] = []
        #: The engine's time that each job took, and when it began first.
        self.work_s: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self._spoken_s: dict[str, float] = {}
        self._fixed_steps = fixed_steps
        self._seen = 0
        self._steps = 0

    def run(self, seconds: float) -> None:
        """Let time pass, step by step."""
        until = self.world.now + seconds
        while self.world.now < until - 1e-9:
            self.step()

    def step(self) -> None:
        """One step of the engine."""
        self._listen()
        weights = {id: 3.0 if self.jobs[id].text.startswith("h") else 1.0 for id in self.running}
        for id, weight in weights.items():
            self.work_s[id] += STEP_S * weight / sum(weights.values())
            self._spoken_s[id] = self._spoken_s.get(id, 0.0) + STEP_S
        self.world.pass_time(STEP_S)
        self._steps += 1
        if self._steps % 2 == 0 and self.running:
            beats = [wire.JobProgress(id, self._steps, None, self.work_s[id]) for id in self.running]
            self.world.say(wire.Beats(jobs=beats))
        spoken_s = self._spoken_s if self._fixed_steps else self.work_s
        for id in [id for id in self.running if spoken_s[id] >= len(self.jobs[id].text) * self.PACE_S]:
            self.running.remove(id)
            self.world.finish(id, work_s=self.work_s[id], memory=MEMORY)
        self._listen()

    def _listen(self) -> None:
        while self._seen < len(self.world.done):
            effect = self.world.done[self._seen]
            self._seen += 1
            if isinstance(effect, effects.Tell):
                self._told(effect.message)

    def _told(self, message: wire.SupervisorMessage) -> None:
        match message:
            case wire.SpeakJob():
                self.jobs[message.job] = message
                self.running.append(message.job)
                self.work_s[message.job], self.began[message.job] = 0.0, self.world.now
            case wire.SuspendJob() if message.job in self.running:
                self.running.remove(message.job)
                self.suspended.append(message.job)
                self.world.say(wire.Suspended(job=message.job, memory=MEMORY, work_s=self.work_s[message.job]))
            case wire.ResumeJob():
                self.suspended.remove(message.job)
                self.running.append(message.job)

    def at_work(self, text: str) -> int:
        """How many jobs whose text begins so are being spoken."""
        return sum(self.jobs[id].text.startswith(text) for id in self.running)

    def ask(self, text: str, client: str = "alice", **keys: Any) -> str:
        """A request of a client for speech; returns its id."""
        return self.world.request(text=text, client=inputs.Client(f"uid:{client}", client), **keys)
