"""How long a job will occupy a worker, from what earlier ones took.

A line is fitted to time by length of text, apart for each kind of job: how its voice is had, its options, and whether
it is written in letters or in characters that are a syllable each. Short texts count for more, since a sentence that
takes a second too long is worse than a chapter that does; and old jobs count ever less, since a GPU that others share
changes its pace. A kind that is new goes by the kinds that are like it."""

from __future__ import annotations

import math
from collections import deque

from msgspec import UNSET, Struct, field

from ..shares import Removals, SharedRows
from .job import Job

#: How much less a job counts with each one after it: about the last twenty count.
_KEPT = 0.95
#: A job that takes longer hides the time between two jobs, some tenths of a millisecond, well enough.
BRIEF_S = 0.005
#: Weight of the newest job in the moving average of all.
_NEWEST = 0.2
#: Kinds that are remembered at most.
_MAX_KINDS = 256
#: With this many jobs of a kind, estimates go by them alone.
_ENOUGH = 3
#: With ``_SURE`` jobs of a kind, the next takes at least ``_AT_LEAST`` of what the fastest of the last would take.
_SURE, _LAST, _AT_LEAST = 8, 20, 0.5
#: Seconds for a letter, before anything was measured.
_UNMEASURED_S = 0.05
#: Characters; to begin with a text takes about as long as to speak these.
_SHORT = 20
#: The variance of the number of jobs side by side from which the effect of it shows.
_SPREAD = 1.0
#: No time is measured more exactly than this.
_SHORTEST_S = 1e-4
#: Estimates over which errors are counted, and the shortest wait that counts.
_JUDGED = 1_000
_WORTH_JUDGING_S = 0.05
_GOOD = 0.3


class _Line(Struct):
    """Sums of a weighted fit of ``seconds = a + b * length``, with ``a`` and ``b`` not below 0."""

    #: The client that sent the first job of the kind, in whose share it counts.
    client: str = ""
    count: int = 0
    w: float = 0.0
    wx: float = 0.0
    wy: float = 0.0
    wxx: float = 0.0
    wxy: float = 0.0
    #: Seconds for a letter of each of the last jobs.
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))

    def learn(self, x: float, y: float) -> None:
        self.count += 1
        self.paces.append(y / max(1.0, x))
        # By the length and not by the time: what was fast once must not outweigh what is slow now.
        weight = 1.0 / (x + _SHORT) ** 2
        self.w = _KEPT * self.w + weight
        self.wx = _KEPT * self.wx + weight * x
        self.wy = _KEPT * self.wy + weight * y
        self.wxx = _KEPT * self.wxx + weight * x * x
        self.wxy = _KEPT * self.wxy + weight * x * y

    def at(self, x: float) -> float:
        determinant = self.w * self.wxx - self.wx * self.wx
        # Texts of one length alone say nothing of others: time is taken to be proportional to length then.
        if determinant <= 1e-6 * self.w * self.wxx:
            return x * self.wxy / self.wxx
        slope = (self.w * self.wxy - self.wx * self.wy) / determinant
        start = (self.wy - slope * self.wx) / self.w
        if slope < 0.0:
            return self.wy / self.w
        if start < 0.0:
            return x * self.wxy / self.wxx
        return start + slope * x


class Beside(Struct):
    """How much longer a job takes beside others: a step of the engine costs a part once, and a part for each job.

    A fit of ``time = alone * (1 + own * (load - 1))``, with ``own`` between 0 (a step takes as long for many as for
    one) and 1 (jobs share what there is).
    """

    own: float = 1.0
    w: float = 0.0
    wx: float = 0.0
    wy: float = 0.0
    wxx: float = 0.0
    wxy: float = 0.0

    def at(self, load: float) -> float:
        """By how much longer a job takes among ``load`` than alone."""
        return 1.0 + self.own * (load - 1.0)

    def learn(self, load: float, longer: float) -> None:
        """One of ``load`` jobs took ``longer`` times as long as was expected of it alone."""
        x = load - 1.0
        self.w = _KEPT * self.w + 1.0
        self.wx = _KEPT * self.wx + x
        self.wy = _KEPT * self.wy + longer
        self.wxx = _KEPT * self.wxx + x * x
        self.wxy = _KEPT * self.wxy + x * longer
        spread = self.w * self.wxx - self.wx * self.wx
        # One load alone says nothing of others.
        if spread > _SPREAD * self.w * self.w:
            slope = (self.w * self.wxy - self.wx * self.wy) / spread
            start = (self.wy - slope * self.wx) / self.w
            self.own = min(1.0, max(0.0, slope / start)) if start > 0.0 else 1.0


class Estimator:
    """Learns from jobs that are done, and says what to expect of others."""

    def __init__(self, removals: Removals | None = None) -> None:
        self._all = _Line()
        self._beside = Beside()
        self._kinds: dict[tuple[str, ...], _Line] = {}
        self._of_client: SharedRows[tuple[str, ...]] = SharedRows()
        self._removals = removals or Removals()
        self._average_s: float | None = None
        self._judged: deque[bool] = deque(maxlen=_JUDGED)
        #: How many estimates of waiting time could be compared with what came.
        self.compared = 0

    def learn(self, job: Job, seconds: float, load: float | None = None) -> None:
        """A job took ``seconds`` in a worker, among ``load`` jobs that shared its time; None: it has one slot."""
        if not 0.0 <= seconds < math.inf:
            return
        length, *kinds = _profile(job)
        if load is not None:
            if not 1.0 <= load < math.inf:
                return
            if self.trained:
                line = self._best(kinds)
                self._beside.learn(load, seconds / max(_SHORTEST_S, line.at(length)))
            seconds /= self._beside.at(load)
        for line in (self._all, *(self._line(kind, job.client.key) for kind in kinds)):
            line.learn(length, seconds)
        average_s = seconds if self._average_s is None else self._average_s
        self._average_s = average_s + _NEWEST * (seconds - average_s)

    def _line(self, kind: tuple[str, ...], client: str) -> _Line:
        line = self._kinds.get(kind)
        if line is not None:
            self._of_client.renew(line.client, kind)
            return line
        line = self._kinds[kind] = _Line(client)
        self._of_client.add(client, kind)
        if len(self._kinds) > _MAX_KINDS:
            loser, oldest = self._of_client.first_out()
            self._removals.note("estimates", loser, shared=len(self._of_client.shares) > 1)
            self._of_client.remove(loser, oldest)
            del self._kinds[oldest]
        return line

    def _best(self, kinds: list[tuple[str, ...]]) -> _Line:
        for kind in kinds:
            line = self._kinds.get(kind)
            if line is not None and line.count >= _ENOUGH:
                return line
        return self._all

    @property
    def trained(self) -> bool:
        """Whether anything was measured yet."""
        return self._all.count > 0

    def expect_s(self, job: Job, load: int = 1) -> float:
        """Seconds of a worker's time that a job will take, among ``load`` jobs that share it."""
        length, *kinds = _profile(job)
        line = self._best(kinds)
        alone_s = line.at(length) if line.count else length * _UNMEASURED_S
        return max(_SHORTEST_S, alone_s if load == 1 else alone_s * self._beside.at(load) / load)

    def least_s(self, job: Job) -> float:
        """Seconds that a job takes at the very least; 0 where too little was measured to say so."""
        length, kind, _ = _profile(job)
        line = self._kinds.get(kind)
        if line is None or line.count < _SURE:
            return 0.0
        # Not by the line, which may be far off for a length that was never seen.
        return _AT_LEAST * min(line.paces) * length

    @property
    def brief(self) -> bool:
        """Whether jobs take about as long as handing one over does, so that a worker would mostly wait for the next."""
        return self._average_s is not None and self._average_s < BRIEF_S

    def judge(self, estimated_s: float, waited_s: float) -> None:
        """A job whose estimate was ``estimated_s`` has waited ``waited_s``."""
        if max(estimated_s, waited_s) >= _WORTH_JUDGING_S:
            self.compared += 1
            self._judged.append(abs(estimated_s - waited_s) <= _GOOD * waited_s)

    @property
    def within(self) -> float | None:
        """The share of the last estimates that were within 30 % of what came; None before there were any."""
        return round(sum(self._judged) / len(self._judged), 4) if self._judged else None


def _length(text: str) -> int:
    """Length as time goes: in bytes of UTF-8, of which a Chinese character, a whole syllable, has three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _profile(job: Job) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """A job's length, and its kind: by its voice and options, and by its voice alone."""
    if job.account.profile is None:
        request, length = job.request, _length(job.request.text)
        voice = "prompt" if request.prompt is not UNSET else "registered" if job.cloned else "own"
        script = "syllables" if length > 2 * len(request.text) else "letters"
        options = ""
        if request.options:
            options = ",".join(f"{key}={value!r:.40}" for key, value in sorted(request.options.items()))
        job.account.profile = length, (voice, script, options[:400]), (voice, script)
    return job.account.profile
