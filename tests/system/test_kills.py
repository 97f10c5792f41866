"""The daemon is killed again and again under a mixed load: no durable job is lost, spoken twice, or half written.

``GLMTTS_KILLS`` says how often, ``GLMTTS_KILLS_SEED`` by which schedule; both are printed.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from ..process.conftest import Peer, Start

KILLS = int(os.environ.get("GLMTTS_KILLS", "50"))
SEED = int(os.environ.get("GLMTTS_KILLS_SEED", str(random.SystemRandom().randrange(10**6))))
#: Everything has to be done so long after the last kill.
PATIENCE_S = 120.0
#: No more jobs are sent while this many are open.
MAX_MISSING = 100


@dataclass
class Wanted:
    """A durable job, and the events that its client has received."""

    request: dict[str, Any]
    job: str = ""
    ends: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""


class Author:
    """Sends durable jobs, asks again for what was not accepted when the daemon died, and remembers every end."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self.wanted: list[Wanted] = []
        self._asked: dict[str, Wanted] = {}
        self._client: Peer

    def connect(self, client: Peer) -> None:
        """To a new daemon: what was accepted is waited for, what was not is asked for once more by its key."""
        self._client = client
        self._asked = {}
        for wanted in self.wanted:
            if not wanted.ends:
                self._ask(wanted)

    def _ask(self, wanted: Wanted) -> None:
        # One in five asks again with the whole request, though it was accepted: the key makes that safe.
        if wanted.job and self._random.random() < 0.8:
            id = self._client.send("wait", job=wanted.job, events="final")
        else:
            id = self._client.send("synthesize", **wanted.request)
        self._asked[id] = wanted

    def send(self) -> None:
        """One more durable job, and one that is not."""
        rng, number = self._random, len(self.wanted)
        request: dict[str, Any] = {
            "text": f"durable sentence {number}",
            "durable": True,
            "key": f"key {number}",
            "priority": rng.choice(("batch", "batch", "interactive")),
            "format": rng.choice(("wav", "flac", "pcm_s16le")),
            "seed": number,
        }
        seconds, segments, rtf = rng.uniform(0.2, 2.0), rng.randint(1, 5), rng.choice((0.02, 0.3))
        request["options"] = {"seconds": seconds, "segments": segments, "rtf": rtf}
        if rng.random() < 0.3:
            request["output"] = f"chapter-{number}.{request['format'][:3]}"
        self.wanted.append(Wanted(request))
        self._ask(self.wanted[-1])
        self._client.send("synthesize", text=f"not durable {number}", stream=rng.random() < 0.5, options={"rtf": 0.2})

    def listen(self, until: float) -> None:
        """Hear what the daemon says until then."""
        while (left := until - time.monotonic()) > 0 and self._client.socket.poll(math.ceil(left * 1e3)):
            event, body = self._client.receive(1.0)
            wanted = self._asked.get(event["id"])
            if wanted is None:
                continue
            if event["event"] == "accepted":
                assert wanted.job in ("", event["job"]), f"another job for the same key: {wanted}, {event}"
                wanted.job = event["job"]
            elif event["event"] in ("done", "error"):
                assert event["event"] == "done", f"{wanted.request} ended in {event}"
                wanted.job = event["job"]
                wanted.ends.append(event)
                wanted.digest = hashlib.sha256(body or b"").hexdigest()
                del self._asked[event["id"]]

    @property
    def missing(self) -> list[Wanted]:
        return [wanted for wanted in self.wanted if not wanted.ends]


@pytest.mark.timeout(60 + 6 * KILLS + PATIENCE_S)
def test_no_durable_job_is_lost_or_spoken_twice_however_often_the_daemon_is_killed(start: Start) -> None:
    print(f"GLMTTS_KILLS={KILLS} GLMTTS_KILLS_SEED={SEED}")
    rng = random.Random(SEED)
    daemon = start(
        workers={"max": 2, "restart": {"max_attempts": 2}},
        queue={"max_waiting": 1_000, "max_share": 1.0},
    )
    author = Author(rng)
    author.connect(daemon.client())
    for _ in range(KILLS):
        kill_at = time.monotonic() + rng.uniform(0.0, 1.2)
        while time.monotonic() < kill_at:
            if len(author.missing) < MAX_MISSING:
                author.send()
            author.listen(min(kill_at, time.monotonic() + rng.uniform(0.02, 0.2)))
        # Some are on their way when it dies: sent, read, on disk, or accepted.
        for _ in range(min(rng.randint(0, 15), MAX_MISSING - len(author.missing))):
            author.send()
        daemon.kill()
        author.listen(time.monotonic() + 0.05)
        daemon.until_nothing_is_left()
        daemon.process = daemon.launch()
        daemon.until(daemon.control_is_open, "the daemon answers")
        author.connect(daemon.client())
    last = time.monotonic()
    while author.missing and time.monotonic() < last + PATIENCE_S:
        author.listen(time.monotonic() + 1.0)
    assert not author.missing, f"lost: {author.missing[:5]}"
    took = time.monotonic() - last

    # Each is heard once more, from the journal, and is the same.
    client = daemon.client()
    tried: dict[int, int] = {}
    folder = daemon.state / "outputs"
    written = {}
    for wanted in author.wanted:
        first = wanted.ends[0]
        again, audio = client.all(client.send("wait", job=wanted.job, events="final"))
        assert again[-1] | {"id": ""} == first | {"id": ""}, "the same job ended twice, and differently"
        assert hashlib.sha256(audio).hexdigest() == wanted.digest
        tried[first["attempts"]] = tried.get(first["attempts"], 0) + 1
        if "output" in wanted.request:
            written[wanted.request["output"]] = wanted
    assert len({wanted.job for wanted in author.wanted}) == len(author.wanted), "two keys, one job"
    daemon.until(lambda: {file.name for file in folder.iterdir()} == set(written), "no half file and no mark is left")
    results = {file.name for file in (daemon.state / "results").iterdir()}
    assert results == {wanted.job for wanted in author.wanted if "output" not in wanted.request}

    # What an undisturbed run makes of the same requests.
    for wanted in author.wanted:
        request = {key: value for key, value in wanted.request.items() if key not in ("durable", "key", "output")}
        done, audio = client.speak(**request | {"durable": False, "options": request["options"] | {"rtf": 0.0}})
        undisturbed = hashlib.sha256(audio).hexdigest()
        if "output" in wanted.request:
            assert hashlib.sha256((folder / wanted.request["output"]).read_bytes()).hexdigest() == undisturbed
        else:
            assert wanted.digest == undisturbed
        assert wanted.ends[0]["sha256"] == undisturbed == done["sha256"]
    unfinished = daemon.status()["journal"]["unfinished"]
    assert unfinished == 0
    print(
        f"{KILLS} kills, {len(author.wanted)} durable jobs ({len(written)} of them files); attempts: "
        f"{dict(sorted(tried.items()))}; all done {took:.1f} s after the last start"
    )
