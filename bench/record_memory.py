"""Records the memory of real worker processes, job by job, for leaks.py: ``python bench/record_memory.py``.

The workers are the daemon's own, spoken to over its private wire: the espeak engine, whose library leaks a little, and
the fault engine, which leaks on request, GPU memory on the fake GPU of the tests.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import zmq

from glmtts.protocol.worker import Failed, Finished, Hello, Ready, SpeakJob, StopWorker, decode_from_worker, encode

TRACES = Path(__file__).parent / "traces"
KIB = 1024
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "mix")
DEADLINE_MS = 60_000


class Worker:
    """One worker process."""

    def __init__(self, folder: Path, engine: str, environment: dict[str, str]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.RCVTIMEO, DEADLINE_MS)
        endpoint = f"ipc://{folder}/{engine}-{os.getpid()}-{id(self)}.sock"
        self._socket.bind(endpoint)
        config = {
            "name": "recorded",
            "endpoint": endpoint,
            "token": "recorded",
            "daemon_pid": os.getpid(),
            "lifeline_fd": None,
            "engine": engine,
            "warmup_text": "Hello.",
        }
        read_end, self._lifeline = os.pipe()
        config["lifeline_fd"] = read_end
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glmtts.daemon.gpu_worker"],
            env=os.environ | environment | {"GLMTTS_WORKER": json.dumps(config)},
            pass_fds=(read_end,),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        os.close(read_end)
        self.identity = b""
        self._until(Hello)
        self._until(Ready)
        self._proc = psutil.Process(self.process.pid)

    def speak(self, number: int, text: str, options: dict[str, Any]) -> None:
        """One job, to its end."""
        job = SpeakJob(
            job=str(number),
            text=text,
            voice=None,
            format="wav",
            sample_rate=None,
            stream=False,
            seed=number,
            options=options,
        )
        self._socket.send_multipart([self.identity, encode(job)])
        message = self._until((Finished, Failed))
        if isinstance(message, Failed):
            raise SystemExit(f"the job failed: {message.code}: {message.message}")

    def rss(self) -> int:
        return int(self._proc.memory_info().rss)

    def stop(self) -> None:
        """End the process."""
        self._socket.send_multipart([self.identity, encode(StopWorker())])
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._lifeline)
        self._socket.close(0)
        self._context.term()

    def _until(self, wanted: Any) -> Any:
        while True:
            self.identity, header, *_ = self._socket.recv_multipart()
            message = decode_from_worker(header)
            if isinstance(message, wanted):
                return message


def texts(seed: int) -> Iterator[str]:
    """Texts as people send them: most are short, some long."""
    rng = random.Random(seed)
    while True:
        yield " ".join(rng.choices(WORDS, k=max(2, min(400, round(rng.lognormvariate(2.3, 0.9)))))) + "."


def record(
    folder: Path,
    name: str,
    *,
    about: str,
    jobs: int,
    options: Callable[[int], dict[str, Any]],
    limits_mib: dict[str, int],
    leaks: str = "",
    gpus: Any = None,
) -> None:
    """Record one process, and write its trace."""
    worker = Worker(folder, "espeak" if name == "espeak" else "fault", gpus.environment() if gpus else {})
    rss, vram = [worker.rss()], [gpus.held_by(worker.process.pid)] if gpus else []
    try:
        for number, text in zip(range(jobs), texts(len(name)), strict=False):
            worker.speak(number, text, options(number))
            rss.append(worker.rss())
            if gpus:
                vram.append(gpus.held_by(worker.process.pid))
    finally:
        worker.stop()
    trace = {
        "name": name,
        "about": about,
        "limits_mib": limits_mib,
        "leaks": leaks,
        # Differences from floor to floor are short to write.
        "rss_kib": _differences(rss),
        "vram_kib": _differences(vram),
    }
    path = TRACES / f"{name}.json"
    path.write_bytes(msgspec.json.encode(trace) + b"\n")
    print(f"{path.name}: {jobs} jobs, rss {rss[0] >> 20} -> {rss[-1] >> 20} MiB", flush=True)


def _differences(values: list[int]) -> list[int]:
    kib = [value // KIB for value in values]
    return [now - before for before, now in zip([0, *kib], kib, strict=False)]


def main() -> None:
    """Record them all."""
    TRACES.mkdir(exist_ok=True)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fake_gpu.fake_gpu import FakeGpus

    def by_text(number: int) -> dict[str, Any]:
        return {"seconds": 0.2 + number * 37 % 100 / 20}

    def leak(kind: str, mib: int) -> dict[str, Any]:
        return {"fault": kind, "mib": mib, "seconds": 0.1}

    def now_and_then(number: int) -> dict[str, Any]:
        return {"seconds": 0.1} if number < 300 or number % 3 else leak("leak_vram", 24)

    with tempfile.TemporaryDirectory(prefix="glmtts-record-") as name:
        write = partial(record, Path(name))
        write(
            "espeak", about="espeak, texts of all lengths", jobs=3_000, options=lambda _: {}, limits_mib={"rss": 1_024}
        )
        write("fault", about="fault, audio of 0.2 to 5 s", jobs=2_000, options=by_text, limits_mib={"rss": 512})
        write(
            "fault-ram",
            about="fault, 2 MiB of host memory",
            jobs=260,
            options=lambda _: leak("leak_ram", 2),
            limits_mib={"rss": 500},
            leaks="rss",
        )
        with FakeGpus(24_576) as gpus:
            write(
                "fault-vram",
                about="fault, 60 MiB of VRAM",
                jobs=390,
                options=lambda _: leak("leak_vram", 60),
                limits_mib={"vram": 24_576},
                leaks="vram",
                gpus=gpus,
            )
            write(
                "fault-vram-later",
                about="fault, 24 MiB of VRAM, every third job from 300 on",
                jobs=1_250,
                options=now_and_then,
                limits_mib={"vram": 8_192},
                leaks="vram",
                gpus=gpus,
            )


if __name__ == "__main__":
    main()
