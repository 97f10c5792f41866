"""Fair shares of time among flows (classes, or the clients of a class), whatever the demand of each.

Start-time fair queueing: every flow has a tag, the virtual time at which its next piece of work may begin; the
smallest goes first, and what a flow is served moves its tag on by that time over its weight. Between two flows that
both have work waiting, the time served per weight never differs by more than their longest pieces; a flow that comes
anew starts at the present, so it neither waits for a round of the others nor has credit from the time when it asked
for nothing. Method and bounds: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queuing", SIGCOMM 1996. Every operation
takes time by the logarithm of the number of flows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping

#: Tags of flows that have nothing waiting are kept as long as they say anything; they are looked through when there are
#: this many, and then whenever there are twice as many as were kept.
_FORGET_FROM = 64
#: What is left of a sum of seconds by rounding.
_NOTHING_S = 1e-9
#: How fast the present moves at least, as a share of how fast a flow does that always waits.
_PACE = 0.5
#: Entries of flows that have been served since are cleared away when there are more of them than of others, and more
#: than this.
_STALE = 64


class FairShare:
    """Whose turn it is. ``ranks`` orders flows whose turns are the same; without, the longest wait goes first.

    ``handicaps``: by how much later, in virtual time, a flow's turn comes than its tag says. In the long run it gets
    its share all the same; for a while others may have more.
    """

    def __init__(self, ranks: Mapping[str, int] | None = None, handicaps: Mapping[str, float] | None = None) -> None:
        #: The present, as it was when it was last looked at; it never goes back.
        self.virtual = 0.0
        self._ranks = ranks or {}
        self._handicaps = handicaps or {}
        self._weights: dict[str, float] = {}
        #: When each flow's next piece may begin, if it has any: ahead of ``virtual`` where it has had more than others.
        self._after: dict[str, float] = {}
        #: Seconds that flows were charged for work under way.
        self._under_way: dict[str, float] = {}
        #: Flows that have work waiting, with the tag and the place among equal ones; and the same by their turns.
        self._waiting: dict[str, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = 0
        self._forget_at = _FORGET_FROM
        #: No flow that was forgotten had been served beyond this.
        self._forgotten = 0.0

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Share out by these weights from now on; a flow without one has 1."""
        self._weights = dict(weights)

    def weight(self, flow: str) -> float:
        """The flow's weight."""
        return self._weights.get(flow, 1.0)

    def __contains__(self, flow: object) -> bool:
        return flow in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def wake(self, flow: str) -> None:
        """The flow has work waiting now; nothing happens if it had."""
        if flow not in self._waiting:
            self._wait(flow, max(self.now(), self._after.get(flow, 0.0)))

    def now(self) -> float:
        """The present: how far that flow has been served which has had the least of all that wait or are being served.

        Work under way does not count before it is done: it may take less than it was charged for, and those that
        come anew would be behind for ever.
        """
        least = math.inf
        for flow, seconds in self._under_way.items():
            least = min(least, self._after[flow] - seconds / self._weights.get(flow, 1.0))
        if self._handicaps:
            for start, _ in self._waiting.values():
                least = min(least, start)
        elif self._waiting and (first := self.next()) is not None:
            least = min(least, self._waiting[first][0])
        if self.virtual < least < math.inf:
            self.virtual = least
        return self.virtual

    def sleep(self, flow: str) -> None:
        """The flow has no work waiting any more, though it was not served."""
        self._waiting.pop(flow, None)

    def next(self, without: Collection[str] = ()) -> str | None:
        """The flow whose turn it is; None if no flow has work waiting, but for those ``without``."""
        if without:
            rest = [self._turn(flow, place) for flow, place in self._waiting.items() if flow not in without]
            return min(rest)[2] if rest else None
        while self._heap:
            place = self._waiting.get(self._heap[0][2])
            if place is not None and self._turn(self._heap[0][2], place) == self._heap[0]:
                return self._heap[0][2]
            heapq.heappop(self._heap)
        return None

    def handicap(self, flow: str) -> float:
        """By how much later the flow's turn comes than its tag says."""
        return self._handicaps.get(flow, 0.0)

    def _turn(self, flow: str, place: tuple[float, int]) -> tuple[float, int, str]:
        start, order = place
        return start + self._handicaps.get(flow, 0.0), order, flow

    def serve(self, flow: str, seconds: float, *, more: bool) -> None:
        """A waiting flow is given so much time, in its turn or not; ``more``: it has more work waiting."""
        if self._handicaps:
            self._pass_over(flow)
        start, _ = self._waiting.pop(flow)
        self._after[flow] = start + seconds / self.weight(flow)
        self._under_way[flow] = self._under_way.get(flow, 0.0) + seconds
        if more:
            self._wait(flow, self._after[flow])
        if len(self._after) > self._forget_at:
            self._forgotten = now = self.now()
            kept = self._waiting.keys() | self._under_way.keys()
            self._after = {f: tag for f, tag in self._after.items() if tag > now or f in kept}
            self._forget_at = max(_FORGET_FROM, 2 * len(self._after))

    def _pass_over(self, served: str) -> None:
        """Move the turns up to that of ``served`` which came before it, and could not be taken.

        They have no credit from work that was not theirs to have: on a worker that takes no jobs of their class.
        """
        turn, _, _ = self._turn(served, self._waiting[served])
        for flow, (start, _) in list(self._waiting.items()):
            missed = turn - self._handicaps.get(flow, 0.0) - start
            if missed > 0.0:
                self._wait(flow, start + missed)
                self._after[flow] = max(self._after.get(flow, 0.0), start + missed)

    def resume(self, flow: str, seconds: float) -> None:
        """A flow that need not wait is given so much time: for the rest of what it had begun."""
        self._charge(flow, seconds)
        self._under_way[flow] = self._under_way.get(flow, 0.0) + seconds

    def settle(self, flow: str, charged_s: float, took_s: float) -> None:
        """Work of the flow is done or suspended: it pays ``took_s`` in place of ``charged_s``."""
        left_s = self._under_way.get(flow, 0.0) - charged_s
        if left_s > _NOTHING_S:
            self._under_way[flow] = left_s
        else:
            self._under_way.pop(flow, None)
        self._charge(flow, took_s - charged_s)

    def _charge(self, flow: str, seconds: float) -> None:
        amount = seconds / self.weight(flow)
        if amount > 0.0 or flow in self._after:
            self._after[flow] = self._after.get(flow, self.virtual) + amount
        if flow in self._waiting:
            self._wait(flow, self._waiting[flow][0] + amount)

    def elapse(self, seconds: float) -> None:
        """A flow was served for ``seconds``: the present moves on, if slower than the flows that always wait.

        Otherwise it would stand still while ever new flows come, each to be served once, and a flow that was served
        before would wait for ever.
        """
        self.virtual += _PACE * seconds / max(1, len(self._waiting))

    def tag(self, flow: str) -> float:
        """When the flow's next piece may begin, in virtual time."""
        if flow in self._waiting:
            return self._waiting[flow][0]
        return max(self.now(), self._after.get(flow, 0.0))

    def had(self, flow: str) -> float:
        """The virtual time up to which the flow has been served: a tag that stands while its work is suspended."""
        return self._after.get(flow, self._forgotten)

    def rest(self) -> None:
        """No work waits or is under way: all debts between the flows are forgotten."""
        if self._after:
            self.virtual = max(self.virtual, *self._after.values())
            self._after.clear()
            self._under_way.clear()
            self._forgotten = self.virtual
        self._heap.clear()

    def turns(self) -> Turns:
        """In what turns the flows will be served from now on; this stays as it is."""
        heap = [self._turn(flow, place) for flow, place in self._waiting.items()]
        heapq.heapify(heap)
        return Turns(heap, self._order, self._weights, self._ranks)

    def place(self, flow: str) -> tuple[float, int]:
        """The tag of a flow that has work waiting, and its place among equal ones."""
        return self._waiting[flow]

    def some_places(self, count: int) -> Iterator[tuple[str, float, int]]:
        """Flows that have work waiting, and their places: all, or of many more than ``count`` a part of all."""
        if len(self._waiting) <= 2 * count:
            return ((flow, *place) for flow, place in self._waiting.items())
        places = ((turn, self._waiting.get(turn[2])) for turn in self._heap[:: len(self._heap) // count])
        return ((turn[2], *place) for turn, place in places if place and self._turn(turn[2], place) == turn)

    def tags(self) -> Iterator[tuple[str, float]]:
        """Every flow that has work waiting, and its tag."""
        return ((flow, place[0]) for flow, place in self._waiting.items())

    def _wait(self, flow: str, start: float) -> None:
        self._order += 1
        place = (start, self._ranks.get(flow, self._order))
        self._waiting[flow] = place
        heapq.heappush(self._heap, self._turn(flow, place))
        if len(self._heap) > _STALE + 2 * len(self._waiting):
            self._heap = [self._turn(flow, place) for flow, place in self._waiting.items()]
            heapq.heapify(self._heap)


class Turns:
    """Looks ahead: what :class:`FairShare` would do if it were served so, and nothing came or went."""

    def __init__(
        self, heap: list[tuple[float, int, str]], order: int, weights: Mapping[str, float], ranks: Mapping[str, int]
    ) -> None:
        self._heap = heap
        self._order = order
        self._weights = weights
        self._ranks = ranks

    def next(self) -> str | None:
        """The flow whose turn it is."""
        return self._heap[0][2] if self._heap else None

    def serve(self, seconds: float) -> None:
        """The flow whose turn it is is given so much time."""
        turn, _, flow = self._heap[0]
        self._order += 1
        turn += seconds / self._weights.get(flow, 1.0)
        heapq.heapreplace(self._heap, (turn, self._ranks.get(flow, self._order), flow))

    def leave(self) -> None:
        """The flow whose turn it is has no more."""
        heapq.heappop(self._heap)
