"""The daemon under test: started with the fault engine in a runtime folder of its own, and measured by itself."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq
from load import Socket, Template, ask, call, connect, next_event, refuse_error
from processes import Child, NotMeasured, cpu_s, memory_mib

#: One worker, as the limits and the peer have; queues that the load fits in, and no limit of rate. The log, the results
#: that are kept and everything else is as a user has it by default.
CONFIG = """
[engine]
name = "fault"

[workers]
gpus = "none"
min = 1
max = 1

[workers.restart]
# A worker that is killed twenty times in a row would else be given longer and longer pauses.
backoff_initial_s = 0.01
backoff_max_s = 0.01
breaker_failures = 1000
max_attempts = 1

[queue]
max_waiting = 100000
max_waiting_batch = 100000
max_per_client = 100000

[limits]
rate = ""
"""


class Daemon:
    """A daemon that accepts: ``accepting_s`` after it was started. ``text`` is its configuration, but for [daemon].

    ``python`` is the interpreter that runs it: another version's, to compare the two.
    """

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        name: str = "daemon",
        text: str = CONFIG,
        python: str = sys.executable,
    ) -> None:
        # Its own short folder: the path of a socket has 107 bytes at most.
        runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="glmtts-bench-")))
        state = runtime / "state"
        config = runtime / "bench.toml"
        config.write_text(f'[daemon]\nstate_dir = "{state}"\n{text}', encoding="utf-8")
        argv = [python, "-m", "glmtts.daemon.supervisor", "--config", str(config)]
        self.requests = f"ipc://{runtime}/glmtts.sock"
        self.control = f"ipc://{runtime}/control.sock"
        self._socket_file = runtime / "glmtts.sock"
        self._context = zmq.Context()
        stack.callback(self._context.destroy, linger=0)
        self.child = Child(name, argv, folder, {"GLMTTS_RUNTIME_DIR": str(runtime)})
        stack.callback(self.child.stop)
        self.child.wait_until(self._socket_file.exists, "the requests socket")
        self.socket = connect(self._context, self.requests)
        call(self.socket, {"op": "ping", "id": "first"})
        self.accepting_s = time.perf_counter() - self.child.exec_at

    def first_job(self, request: dict[str, Any]) -> float:
        """Seconds from exec to the end of a first job, which a worker that is READY has spoken."""
        call(self.socket, {"id": "job", **request, "events": "final"})
        return time.perf_counter() - self.child.exec_at

    def operator(self) -> Socket:
        """A connection to the control socket."""
        return connect(self._context, self.control)

    def client(self) -> Socket:
        """A further connection to the requests socket."""
        return connect(self._context, self.requests)

    def worker_pids(self) -> list[int]:
        """The pids of the worker processes."""
        # Asked of the kernel, not of the daemon: it holds whatever the answer of ``workers`` looks like.
        return [process.pid for process in self.child.descendants() if "glmtts.daemon.gpu_worker" in process.cmdline()]


def starts(folder: Path, request: dict[str, Any], times: int) -> dict[str, float]:
    """Median seconds from exec until the daemon accepts, and until a worker has done a job."""
    accepting, ready = [], []
    for _ in range(times):
        with ExitStack() as stack:
            daemon = Daemon(stack, folder, "daemon-starts")
            accepting.append(daemon.accepting_s)
            ready.append(daemon.first_job(request))
    return {
        "times": times,
        "accepting_s": statistics.median(accepting),
        "accepting_max_s": max(accepting),
        "first_job_s": statistics.median(ready),
    }


def rest(daemon: Daemon, seconds: float) -> dict[str, float]:
    """Memory and share of a processor of an idle daemon."""
    begin, before = time.perf_counter(), cpu_s([daemon.child.pid])
    time.sleep(seconds)
    used, elapsed = cpu_s([daemon.child.pid]) - before, time.perf_counter() - begin
    return {**memory_mib(daemon.child.pid), "idle_cpu_percent": 100 * used / elapsed, "idle_over_s": elapsed}


def queue_memory(folder: Path, request: dict[str, Any], jobs: int) -> dict[str, float]:
    """What ``jobs`` waiting jobs cost the supervisor, and how fast it takes them in and works them off."""
    with ExitStack() as stack:
        daemon = Daemon(stack, folder, "daemon-queue")
        daemon.first_job(request)
        before = memory_mib(daemon.child.pid)
        operator = daemon.operator()
        call(operator, {"op": "pause", "id": "pause"})
        # Not durable: the journal is another cost, and another matter.
        header = Template({**request, "priority": "batch", "durable": False, "events": "final"})
        client = daemon.client()
        begin = time.perf_counter()
        for number in range(jobs):
            client.send(header(number))
        # One connection is read in order, so the pong comes when all jobs are queued; a refusal would come before it.
        ask(client, {"op": "ping", "id": "queued"})
        if (event := refuse_error(next_event(client)))["id"] != "queued":
            raise NotMeasured(f"job {event['id']} was answered before the queue was resumed")
        queued_s = time.perf_counter() - begin
        full = memory_mib(daemon.child.pid)
        call(operator, {"op": "resume", "id": "resume"})
        begin = time.perf_counter()
        for _ in range(jobs):
            refuse_error(next_event(client))
        worked_off_s = time.perf_counter() - begin
        after = memory_mib(daemon.child.pid)
    return {
        "jobs": jobs,
        "rss_before_mib": before["rss"],
        "rss_full_mib": full["rss"],
        "pss_full_mib": full["pss"],
        "rss_after_mib": after["rss"],
        "bytes_per_job": (full["rss"] - before["rss"]) * 1024 * 1024 / jobs,
        "queued_per_s": jobs / queued_s,
        "worked_off_per_s": jobs / worked_off_s,
    }


def kills(folder: Path, request: dict[str, Any], times: int) -> dict[str, Any]:
    """Median seconds from the SIGKILL of a worker in mid-stream to its client's answer, and to the next job's end."""
    answers, next_jobs = [], []
    stream = {**request, "stream": True, "options": {"fault": "sleep", "seconds": 60, "after_segments": 1}}
    with ExitStack() as stack:
        daemon = Daemon(stack, folder, "daemon-kills")
        daemon.first_job(request)
        client = daemon.client()
        for number in range(times):
            job = f"killed-{number}"
            # Every time another text: a job that has killed two workers is not tried again.
            ask(client, {**stream, "id": job, "text": f"{request['text']} {number}"})
            while refuse_error(next_event(client))["event"] != "audio":
                pass
            pids = daemon.worker_pids()
            if len(pids) != 1:
                raise NotMeasured(f"one worker was expected, {len(pids)} are there")
            begin = time.perf_counter()
            os.kill(pids[0], signal.SIGKILL)
            while "code" not in (answer := next_event(client)):
                pass
            answers.append(time.perf_counter() - begin)
            if answer["code"] != "worker_crashed":
                raise NotMeasured(f"the job of a killed worker ended with {answer['code']}: {answer['message']}")
            call(client, {**request, "events": "final", "id": f"next-{number}"})
            next_jobs.append(time.perf_counter() - begin)
    return {
        "times": times,
        "answer_s": statistics.median(answers),
        "answer_max_s": max(answers),
        "next_job_s": statistics.median(next_jobs),
        "answers_s": answers,
    }
