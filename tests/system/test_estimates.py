"""The wait that is announced at acceptance comes true: within 30 % for nine of ten, once jobs were seen."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from ..process.conftest import Peer, Start

#: How far off an estimate may be, of how many; and the shortest wait that is one: the machine is shared.
GOOD, NINE_OF_TEN, WORTH_S = 0.3, 0.9, 0.1
WORDS = "the weather is nice today and nobody in this town would have thought that it ever could be so again "
CHINESE = "今天天气不错，我们去公园散步，孩子们在草地上奔跑，老人坐在树下喝茶。"


def text(rng: random.Random, longest: int) -> str:
    """A text of any length up to a limit, in one language or the other."""
    source = rng.choice((WORDS, CHINESE))
    length = rng.randint(longest // 10, longest)
    return f"{rng.randrange(10**6)} {(source * (length // len(source) + 1))[:length]}"


def told_and_waited(client: Peer, requests: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Send them all; what each was told, and how long it waited."""
    ids = [client.send("synthesize", format="pcm_s16le", **keys) for keys in requests]
    pairs = []
    for id in ids:
        events, _ = client.all(id, 60.0)
        by_name = {event["event"]: event for event in reversed(events)}
        assert events[-1]["event"] == "done", events[-1]
        pairs.append((by_name["accepted"].get("estimated_wait_s", 0.0), by_name["started"]["waited_s"]))
    return pairs


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("engine", "workers", "longest", "options"),
    [("fault", 1, 300, {"rtf": 0.01}), ("fault", 2, 300, {"rtf": 0.02}), ("espeak", 1, 1_500, {})],
)
def test_the_announced_wait_comes_true(
    start: Start, engine: str, workers: int, longest: int, options: dict[str, Any]
) -> None:
    daemon = start(
        engine={"name": engine},
        workers={"max": workers},
        limits={"rate": "", "gateways": [str(os.geteuid())]},
        queue={"max_waiting": 30},
    )
    rng = random.Random(7)
    client = daemon.client()

    def some(count: int) -> list[dict[str, Any]]:
        return [{"text": text(rng, longest), "options": options} for _ in range(count)]

    # Until some of each kind were seen: letters and syllables take their time differently.
    for _ in range(2):
        told_and_waited(client, some(12))
    # On a machine that is shared a run may be disturbed by what others do: then it is made again, twice at most.
    for _ in range(3):
        pairs = [pair for _ in range(4) for pair in told_and_waited(client, some(10))]
        # Two of a gateway's customers at a time, who get the same share.
        for _ in range(2):
            both = some(10)
            for number, keys in enumerate(both):
                keys["on_behalf_of"] = f"customer {number % 2}"
            pairs += told_and_waited(client, both)
        worth = [(told, waited) for told, waited in pairs if max(told, waited) >= WORTH_S]
        good = sum(abs(told - waited) <= GOOD * waited for told, waited in worth)
        longest_s = max(waited for _, waited in worth)
        print(f"{engine}, {workers} workers: {good} of {len(worth)} within 30 %; longest wait {longest_s:.2f} s")
        assert len(worth) >= 20
        if good >= NINE_OF_TEN * len(worth):
            break
    else:
        pytest.fail(f"not nine of ten: {[pair for pair in worth if abs(pair[0] - pair[1]) > GOOD * pair[1]]}")
    assert daemon.status()["estimates"]["jobs"] > 0
