"""A healthy engine is left alone, however its memory wavers: ten thousand jobs, and not one process replaced."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ..fake_gpu.fake_gpu import FakeGpus
from ..process.conftest import Start

JOBS = 10_000
AT_ONCE = 8


@pytest.mark.timeout(600)
def test_a_healthy_worker_with_noisy_memory_is_not_replaced_in_ten_thousand_jobs(
    start: Start, fake_gpus: FakeGpus
) -> None:
    """Texts of all lengths make torch's cache grow to the size of the largest, and a few new voices stay for good."""
    random.seed(1)
    daemon = start(
        environment=fake_gpus.environment(),
        engine={"fault": {"vram_mib": 9_000}},
        workers={"gpus": "all", "max": 0, "recycle": {"idle_trim_s": 5.0}},
    )
    (before,) = daemon.workers()
    client = daemon.client()
    running: list[str] = []
    for number in range(JOBS):
        options: dict[str, Any] = {
            "fault": "use_vram",
            "mib": int(random.paretovariate(1.5) * 40) % 4_000,
            "seconds": 0.01,
        }
        if number in (5, 50, 500, 2_000):
            options = {"fault": "leak_vram", "mib": 60, "seconds": 0.01}
        running.append(client.send("synthesize", text=f"job {number}", options=options))
        if len(running) >= AT_ONCE:
            done = client.all(running.pop(0))[0][-1]
            assert (done["event"], done.get("attempts")) == ("done", 1), done
    for id in running:
        assert client.all(id)[0][-1]["event"] == "done"
    (after,) = daemon.workers()
    assert (after["pid"], after["restarts"]) == (before["pid"], 0)
    assert after["jobs_since_start"] == JOBS
    assert "recycled" not in daemon.log()
