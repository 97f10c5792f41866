"""A process that does nothing but sample GPUs and worker processes, as the daemon does; prints what that cost as JSON.

``sampler_cost.py SECONDS PID...``: the processes that count as workers. The GPUs are those that this process sees.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

from processes import cpu_s

from glmtts.daemon.gpu.sampler import Sampler


def main(seconds: float, pids: list[int]) -> None:
    """Sample for that long at the daemon's own pace."""
    wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    sampler = Sampler(write_end, time.monotonic, use_nvml=True)
    for incarnation, pid in enumerate(pids):
        sampler.watch(incarnation, pid)

    def samples(until: float) -> list[dict[str, int | str]]:
        found = []
        while (left := until - time.perf_counter()) > 0:
            if select.select([wakeup], [], [], left)[0]:
                os.read(wakeup, 512)
                for sample in sampler.collect():
                    gpus, processes = [gpu for gpu in sample.gpus if gpu.state == "ok"], sample.processes
                    listed = sum(len(gpu.processes) for gpu in gpus)
                    state = sample.nvml.state
                    found.append({"gpus": len(gpus), "processes": len(processes), "listed": listed, "nvml": state})
        return found

    # The first look loads the library, and shows whom there is.
    samples(time.perf_counter() + 2.0)
    begin, before = time.perf_counter(), cpu_s([os.getpid()])
    taken = samples(begin + seconds)
    used, elapsed = cpu_s([os.getpid()]) - before, time.perf_counter() - begin
    last = taken[-1] if taken else {}
    print(json.dumps({"cpu_percent": 100 * used / elapsed, "seconds": elapsed, "samples": len(taken)} | last))
    sampler.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), [int(pid) for pid in sys.argv[2:]])
