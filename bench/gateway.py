"""What HTTP costs: the gateway beside the bare socket in the same run, and beside two peers with the same handler.

``make bench`` runs it; docs/benchmarks.md says how to read it. The peers are installed from their own requirements into
an environment of their own (bench/peers/.venv) at the first run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import http_streams
import msgpack
import overhead
import report
import running
import speakers
import zmq
from daemon_under_test import Daemon
from http_peers import SPEECH, Peers, answers, free_port
from http_streams import Connection, Heard, encode
from load import TIMEOUT_MS, Throughput, ZmqLoad, ask, call, next_event, refuse_error
from processes import Child, NotMeasured, cpu_s, memory_mib
from subjects import TEXT

HERE = Path(__file__).parent
#: Bytes of a second of pcm.
RATE = 48_000
#: Connections that ask for short jobs, each for one at a time.
AT_ONCE = 16
LISTENERS = 200
#: A worker of rtf 0.5 speaks for two listeners, one after the other.
LISTENERS_WORKERS = 100
LISTENING_S = 20.0
PEER_NAMES = ("fastapi", "mosec")

LABELS = {
    "socket": "bare socket",
    "gateway": "gateway",
    "sse": "gateway, SSE",
    "fastapi": "FastAPI + uvicorn, one process",
    "mosec": "mosec",
}
#: Milliseconds that the gateway may add to the first byte.
FIRST_BYTE_MS = 5.0


def options(seconds: float, rtf: float = 0.0) -> dict[str, Any]:
    """Of the fault engine, and of the peers' handler."""
    return {"fault": "audio", "seconds": seconds, "rtf": rtf}


def body(seconds: float, rtf: float = 0.0, text: str = TEXT, **more: Any) -> dict[str, Any]:
    """A request for speech over HTTP."""
    return {"input": text, "response_format": "pcm", "options": options(seconds, rtf), **more}


def job(seconds: float, rtf: float = 0.0, text: str = TEXT, **more: Any) -> dict[str, Any]:
    """The same at the socket."""
    keys = {"text": text, "format": "pcm_s16le", "sample_rate": 24_000, "options": options(seconds, rtf)}
    return {"op": "synthesize", **keys, **more}


class Gateway:
    """A gateway before a daemon, on a free port."""

    def __init__(self, stack: ExitStack, folder: Path, daemon: Daemon, name: str = "gateway") -> None:
        self.port = free_port()
        file = folder / f"{name}.toml"
        file.write_text(
            f'[gateway]\nlisten = "127.0.0.1:{self.port}"\nendpoint = "{daemon.requests}"\n'
            f"connections_per_address = {2 * LISTENERS + 100}\n"
        )
        argv = [sys.executable, "-m", "glmtts.gateway.main", "--config", str(file)]
        self.child = Child(name, argv, folder)
        stack.callback(self.child.stop)
        self.child.wait_until(lambda: answers(self.port), "the gateway")


def service(stack: ExitStack, folder: Path, workers: int = 1, **queue: Any) -> tuple[Daemon, Gateway]:
    """A daemon with warm workers, without limits that this load would meet, and its gateway."""
    text = speakers.config(
        "fault", workers=workers, max_waiting=100_000, max_per_client=100_000, max_share=1.0, **queue
    )
    restart = "[workers.restart]\nbackoff_initial_s = 0.01\nbackoff_max_s = 0.01\nbreaker_failures = 1000\n"
    people = speakers.Speakers(stack, folder, f"daemon-{workers}", text + restart, workers)
    return people.daemon, Gateway(stack, folder, people.daemon, f"gateway-{workers}")


@dataclass(slots=True)
class Subject:
    """One row: how it is asked for a stream, and for many short jobs; whose processor time counts."""

    first_byte: Callable[[], float]
    many: Callable[[float], Throughput] | None
    pids: Sequence[int] = ()
    first_ms: list[float] = field(default_factory=list)
    rounds: list[Throughput] = field(default_factory=list)
    used_s: float = 0.0
    supervisor_s: float = 0.0

    @classmethod
    def over_http(cls, stack: ExitStack, port: int, stream: str, whole: str, pids: Sequence[int]) -> Subject:
        """A service on that port."""
        listener = stack.enter_context(contextlib.closing(Connection(port)))
        first, short = encode(stream, body(1.0)), encode(whole, body(0.2))

        def many(seconds: float) -> Throughput:
            # Anew for each round: services close a connection that says nothing for seconds.
            with ExitStack() as visit:
                visitors = [visit.enter_context(contextlib.closing(Connection(port))) for _ in range(AT_ONCE)]
                return http_streams.short_jobs(visitors, short, seconds)

        return cls(lambda: http_streams.first_byte_s(listener, first), many, pids)

    @classmethod
    def of_events(cls, stack: ExitStack, port: int) -> Subject:
        """The gateway's streams as server-sent events."""
        listener = stack.enter_context(contextlib.closing(Connection(port)))
        request = encode(SPEECH, body(1.0, stream_format="sse"))
        return cls(lambda: http_streams.first_byte_s(listener, request, b"event: "), None)

    def round(self, seconds: float, supervisor: Sequence[int]) -> None:
        """Its turn of many short jobs at once."""
        if self.many is None:
            return
        before = cpu_s(self.pids), cpu_s(supervisor)
        self.rounds.append(self.many(seconds))
        self.used_s += cpu_s(self.pids) - before[0]
        self.supervisor_s += cpu_s(supervisor) - before[1]

    def rates(self) -> dict[str, float]:
        """Of all rounds; the processor time includes what came before and after the counted second."""
        jobs = sum(one.jobs for one in self.rounds)
        return {
            "per_s": statistics.median(one.jobs / one.seconds for one in self.rounds),
            "service_us": 1e6 * self.used_s / jobs,
            "supervisor_us": 1e6 * self.supervisor_s / jobs,
        }


def _at_socket(stack: ExitStack, daemon: Daemon) -> Subject:
    client = daemon.client()
    load = ZmqLoad(daemon.requests, {**job(0.2), "events": "final"}, connections=AT_ONCE)
    stack.callback(load.close)
    return Subject(lambda: _first_byte_at_socket(client), lambda seconds: load.outstanding(seconds, 1))


# --- what is measured


class Bench:
    """One run. Each part that fails is named with its reason, and the others go on."""

    def __init__(self, quick: bool, folder: Path) -> None:
        self.quick = quick
        self.folder = folder
        self.peers: Peers | None = None
        self.results: report.Results = {"machine": overhead.machine(), "not_measured": {}}

    def run(self, parts: list[str]) -> report.Results:
        """Measure the named parts."""
        try:
            self.peers = Peers()
            self.results["machine"]["peers"] = self.peers.versions()
        except (OSError, subprocess.SubprocessError) as error:
            self.results["not_measured"]["peers"] = f"they can't be installed here: {error}"
        for part in parts:
            overhead.note(part)
            try:
                self.results[part] = getattr(self, part)()
            except (NotMeasured, OSError, zmq.ZMQError, KeyError, ValueError) as error:
                self.results["not_measured"][part] = str(error) if isinstance(error, NotMeasured) else repr(error)
        return self.results

    def speed(self) -> report.Results:
        """First byte of a stream and requests a second: each subject in turn, request by request and round by round."""
        with ExitStack() as stack:
            daemon, gateway = service(stack, self.folder)
            supervisor = [daemon.child.pid]
            subjects = {
                "socket": _at_socket(stack, daemon),
                "gateway": Subject.over_http(stack, gateway.port, SPEECH, SPEECH, [gateway.child.pid]),
                "sse": Subject.of_events(stack, gateway.port),
            }
            for name in PEER_NAMES if self.peers else ():
                try:
                    peer = self.peers.start(name, stack, self.folder)
                except NotMeasured as error:
                    self.results["not_measured"][name] = str(error)
                    continue
                subjects[name] = Subject.over_http(stack, peer.port, peer.stream, peer.whole, peer.pids())
            for turn in range(60 if self.quick else 500):
                for subject in subjects.values():
                    took_s = subject.first_byte()
                    if turn >= 10:
                        subject.first_ms.append(took_s * 1e3)
            for _ in range(2 if self.quick else 8):
                for subject in subjects.values():
                    subject.round(0.5 if self.quick else 1.0, supervisor)
        return {
            "first_byte_ms": {name: _percentiles(subject.first_ms) for name, subject in subjects.items()},
            "requests": {name: subject.rates() for name, subject in subjects.items() if subject.many},
        }

    def minutes(self) -> report.Results:
        """Processor time of gateway and supervisor for a minute of speech in each kind of stream."""
        minutes = 1 if self.quick else 5
        found: report.Results = {}
        with ExitStack() as stack:
            daemon, gateway = service(stack, self.folder)
            listener = stack.enter_context(contextlib.closing(Connection(gateway.port)))
            client = daemon.client()
            kinds = {"pcm": {}, "mp3": {"response_format": "mp3"}, "pcm, SSE": {"stream_format": "sse"}}
            for name, more in kinds.items():
                pids = [gateway.child.pid], [daemon.child.pid]
                before = [cpu_s(pid) for pid in pids]
                for _ in range(minutes):
                    http_streams.first_byte_s(listener, encode(SPEECH, body(60.0, **more)))
                used = [cpu_s(pid) - was for pid, was in zip(pids, before, strict=True)]
                found[name] = {"gateway_ms": 1e3 * used[0] / minutes, "supervisor_ms": 1e3 * used[1] / minutes}
            before_s = cpu_s([daemon.child.pid])
            for _ in range(minutes):
                _first_byte_at_socket(client, 60.0)
            found["bare socket, pcm"] = {"supervisor_ms": 1e3 * (cpu_s([daemon.child.pid]) - before_s) / minutes}
        return found

    def listeners(self) -> report.Results:
        """200 listeners at once at rtf 0.5, each with a job of its own: at the bare socket, then over HTTP."""
        workers, count, seconds = (20, 40, 6.0) if self.quick else (LISTENERS_WORKERS, LISTENERS, LISTENING_S)
        with ExitStack() as stack:
            daemon, gateway = service(stack, self.folder, workers)
            supervisor, front = [daemon.child.pid], [gateway.child.pid]
            found: report.Results = {"workers": workers, "rtf": 0.5, "seconds_each": seconds}
            before = cpu_s(supervisor)
            heard = _listen_at_socket(daemon, count, seconds)
            found["socket"] = _heard(heard) | {
                "supervisor_ms_a_minute": _ms_a_minute(cpu_s(supervisor) - before, heard)
            }
            before, before_front = cpu_s(supervisor), cpu_s(front)
            heard = http_streams.listen(
                count,
                lambda number: encode(SPEECH, body(seconds, 0.5, f"{TEXT} {number}")),
                gateway.port,
                RATE,
                limit_s=5 * seconds,
            )
            found["gateway"] = _heard(heard) | {
                "supervisor_ms_a_minute": _ms_a_minute(cpu_s(supervisor) - before, heard),
                "gateway_ms_a_minute": _ms_a_minute(cpu_s(front) - before_front, heard),
            }
        return found

    def idle(self) -> report.Results:
        """Memory of the gateway for each listener that hears nothing: a connection alone, and a stream that waits."""
        found: report.Results = {}
        with ExitStack() as stack:
            daemon, gateway = service(stack, self.folder)
            with contextlib.closing(Connection(gateway.port)) as first:
                for _ in range(20):  # what the first requests need is not what each needs
                    http_streams.first_byte_s(first, encode(SPEECH, body(1.0, stream_format="sse")))
            call(daemon.operator(), {"op": "pause", "id": "pause"})
            for kind in ("connection", "stream"):
                with ExitStack() as visit:
                    before = memory_mib(gateway.child.pid)["rss"]
                    for number in range(LISTENERS):
                        visitor = visit.enter_context(contextlib.closing(Connection(gateway.port)))
                        if kind == "stream":
                            visitor.ask(encode(SPEECH, body(1.0, text=f"{TEXT} {number}", stream_format="sse")))
                            while not visitor.receive():  # its place in the queue
                                pass
                    found["rss_mib"] = memory_mib(gateway.child.pid)["rss"]
                    found[f"{kind}_kib"] = (found["rss_mib"] - before) * 1024 / LISTENERS
        return found

    def kills(self) -> report.Results:
        """What a client of a killed worker gets, and when: in mid-stream, and before the first audio."""
        found: report.Results = {}
        times = {"gateway": 3 if self.quick else 20, "fastapi": 1 if self.quick else 3, "mosec": 1 if self.quick else 3}
        for name in ("gateway", "fastapi", "mosec") if self.peers else ("gateway",):
            for when in ("streaming", "waiting"):
                with ExitStack() as stack:
                    daemon = service(stack, self.folder) if name == "gateway" else None
                    for number in range(times[name]):
                        with ExitStack() as one:
                            killed = self._kill(name, when, number, daemon, one)
                        found.setdefault(name, {}).setdefault(when, []).append(killed)
        return found

    def _kill(
        self, name: str, when: str, number: int, ours: tuple[Daemon, Gateway] | None, stack: ExitStack
    ) -> report.Results:
        whole = stream = SPEECH
        if ours is not None:
            daemon, gateway = ours
            port = gateway.port
            pid = daemon.worker_pids()[0]
        else:
            assert self.peers is not None
            peer = self.peers.start(name, stack, self.folder)
            port, whole, stream = peer.port, peer.whole, peer.stream
            pid = peer.worker_pid(stream if when == "streaming" else whole)
        connection = stack.enter_context(contextlib.closing(Connection(port)))
        text = f"{TEXT} {when} {number}"
        if when == "streaming":
            connection.ask(encode(stream, body(60.0, 0.2, text)), keep=True)
            while not connection.receive():
                pass
        else:
            connection.ask(encode(whole, body(1.0, 1.0, text)), keep=True)
            time.sleep(0.25)  # nothing tells from outside that the worker has begun
        begin = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        broken = False
        try:
            connection.finish()
        except OSError:
            broken = True
        took = time.perf_counter() - begin
        answer = connection.answer
        got = f"status {answer.status}" if answer.status else "no answer"
        got += ", broken off" if broken else f", {_end_of(answer.content)}" if when == "streaming" else ""
        return {"got": got, "answer_s": took, "next_s": _next_s(port, whole, begin)}


def _end_of(content: bytes) -> str:
    return "an error as its last event" if b"error" in content[-400:].lower() else "ends as if it were whole"


def _next_s(port: int, path: str, begin: float) -> float | None:
    """Seconds from the kill until a new request has speech; None when it has none within ten seconds."""
    while time.perf_counter() - begin < 10:
        with contextlib.suppress(OSError):
            connection = Connection(port)
            connection.ask(encode(path, body(0.2)))
            status = connection.finish().status
            connection.close()
            if status == 200:
                return time.perf_counter() - begin
        time.sleep(0.01)
    return None


def _first_byte_at_socket(client: Any, seconds: float = 1.0) -> float:
    begin = time.perf_counter()
    ask(client, {**job(seconds, stream=True), "id": "first"})
    took = 0.0
    while (event := refuse_error(next_event(client)))["event"] != "done":
        if event["event"] == "audio" and not took:
            took = time.perf_counter() - begin
    return took


def _listen_at_socket(daemon: Daemon, count: int, seconds: float) -> list[Heard]:
    """On one connection, as the gateway has."""
    client = daemon.client()
    heard = []
    for number in range(count):
        heard.append(Heard(time.perf_counter()))
        ask(client, {**job(seconds, 0.5, f"{TEXT} {number}", stream=True), "id": f"{number}"})
    left = count
    while left:
        try:
            header, *rest = client.recv_multipart()
        except zmq.Again:
            raise NotMeasured(f"{left} streams stood still for {TIMEOUT_MS / 1000:g} s") from None
        event = refuse_error(msgpack.unpackb(header))
        if event["event"] == "audio" and rest:
            heard[int(event["id"])].more(len(rest[0]) / RATE, time.perf_counter())
        left -= event["event"] == "done"
    return heard


def _heard(heard: list[Heard]) -> report.Results:
    reserves = [one.reserve_s for one in heard]
    return {
        "listeners": len(heard),
        "at_once": http_streams.most_at_once(heard),
        "with_gaps": sum(one.gaps > 0 for one in heard),
        "least_reserve_s": min(reserves),
        "median_reserve_s": statistics.median(reserves),
        "audio_s": sum(one.audio_s for one in heard),
    }


def _ms_a_minute(used_s: float, heard: list[Heard]) -> float:
    return 1e3 * used_s / (sum(one.audio_s for one in heard) / 60)


def _percentiles(times: list[float]) -> dict[str, float]:
    return {"p50": report.percentile(times, 0.5), "p99": report.percentile(times, 0.99)}


# --- what it comes to


def text(results: report.Results) -> str:
    """For people."""
    parts = []
    if "speed" in results:
        first, requests = results["speed"]["first_byte_ms"], results["speed"]["requests"]
        rows = [["", "first byte p50 ms", "p99 ms", "requests/s", "service us", "supervisor us"]]
        for name, times in first.items():
            rate = requests.get(name)
            row = [LABELS[name], f"{times['p50']:.2f}", f"{times['p99']:.2f}"]
            ours = name in ("socket", "gateway")
            row += [f"{rate['per_s']:,.0f}", f"{rate['service_us']:.0f}"] if rate else ["", ""]
            rows.append([*row, f"{rate['supervisor_us']:.0f}" if rate and ours else ""])
        parts.append(report.table(rows))
        later = {share: first["gateway"][share] - first["socket"][share] for share in ("p50", "p99")}
        verdict = "met" if max(later.values()) <= FIRST_BYTE_MS else "MISSED"
        parts.append(
            f"the gateway's first byte is {later['p50']:.2f} ms (p50) and {later['p99']:.2f} ms (p99) later than the "
            f"bare socket's; at most {FIRST_BYTE_MS:g} ms: {verdict}"
        )
    if "minutes" in results:
        rows = [["processor time for a minute of speech, ms", "gateway", "supervisor"]]
        for name, used in results["minutes"].items():
            gateway_ms = f"{used['gateway_ms']:.0f}" if "gateway_ms" in used else ""
            rows.append([name, gateway_ms, f"{used['supervisor_ms']:.0f}"])
        parts.append(report.table(rows))
    if "listeners" in results:
        found = results["listeners"]
        rows = [["listeners at once", "most playing", "with a gap", "least reserve s", "median s", "ms/min", "gateway"]]
        for name in ("socket", "gateway"):
            one = found[name]
            row = [f"{LABELS[name]}, {one['listeners']}", str(one["at_once"]), str(one["with_gaps"])]
            row += [f"{one['least_reserve_s']:.3f}", f"{one['median_reserve_s']:.3f}"]
            row += [f"{one['supervisor_ms_a_minute']:.0f}", f"{one.get('gateway_ms_a_minute', 0):.0f}"]
            rows.append(row)
        parts.append(report.table(rows) + f"\n{found['workers']} workers at rtf 0.5, {found['seconds_each']:g} s each")
    if "idle" in results:
        idle = results["idle"]
        parts.append(
            f"memory of the gateway for each of {LISTENERS} that hear nothing: {idle['connection_kib']:.1f} KiB a "
            f"connection, {idle['stream_kib']:.1f} KiB a stream that waits; {idle['rss_mib']:.0f} MiB in all"
        )
    if "kills" in results:
        rows = [["a worker is killed", "times", "its client gets", "after ms", "most ms", "next speech after ms"]]
        for name, by_time in results["kills"].items():
            for when, killed in by_time.items():
                got = " or ".join(sorted({one["got"] for one in killed}))
                waits = [one["answer_s"] * 1e3 for one in killed]
                nexts = [one["next_s"] for one in killed if one["next_s"] is not None]
                row = [f"{LABELS[name]}, {when}", str(len(killed)), got, f"{statistics.median(waits):.1f}"]
                rows.append([*row, f"{max(waits):.1f}", f"{statistics.median(nexts) * 1e3:.0f}" if nexts else "never"])
        parts.append(report.table(rows))
    parts += [f"not measured: {name}: {reason}" for name, reason in results["not_measured"].items()]
    return "\n\n".join(parts)


PARTS = ("speed", "minutes", "listeners", "idle", "kills")


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="gateway.py", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a look in a minute, not a result")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas between: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    running.end_in_time(600)
    gc.disable()  # a collection in the load generator would show as a slow request
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        results = Bench(options.quick, Path(folder)).run(chosen)
    files = running.save(results, "gateway", options.out)
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{files}")


if __name__ == "__main__":
    main()
