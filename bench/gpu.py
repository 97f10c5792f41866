"""What a GPU has to show before ``batching = "on"`` becomes the default there; bench/gpu.sh runs it.

A part has a process of its own, which ends with it: NVML, faults on the GPU under supervision, the language model and
the flow model by themselves (``--inside``, run by the interpreter of the root), and both engines (engine.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = (1, 16, 64)
USERS = (1, 4, 16, 64)
#: Without a GPU the script shows only that it runs to its end, beside the other work of a small machine too.
ROWS_ON_CPU, USERS_ON_CPU, TOKENS_ON_CPU = ROWS[:2], USERS[:2], 12
#: What was estimated for the published checkpoint: ms of a step with 1, 16 and 64 rows in bf16, ms of the flow model
#: for 10 s with a prompt of 5 s in fp32, the real-time factor of one user, and the most seconds of audio a second.
ESTIMATES = {
    "H200": ((1.5, 1.7, 2.5), 93.0, 0.05, 75.0),
    "RTX 4090": ((4.6, 5.4, 7.6), 81.0, 0.13, 70.0),
    "A100": ((2.7, 3.1, 4.3), 232.0, 0.095, 36.0),
}
#: The factor by which a figure may be off its estimate.
_SLACK = 1.5
#: The largest difference of a spectrogram in TF32, in dB of the whole.
_TF32_DB = -60.0
#: A checkpoint with fewer weights in its language model is not the published one, and its times say nothing.
_PUBLISHED_WEIGHTS = 1_000_000_000
_PROMPT_TOKENS, _STEPS, _STEPS_ON_CPU = 300, 30, 5
_TOKENS_PER_S = 25
_FLOW_PROMPT, _FLOW_TOKENS, _FLOW_TOKENS_ON_CPU = 125, 250, 20

Figures = dict[str, Any]


class Table:
    """Collects the lines, and whether all hold."""

    def __init__(self) -> None:
        self.failed = False
        print(f"{'what':58} {'value':>24} {'limit':>12}  verdict")

    def add(self, what: str, value: object, limit: object = "-", holds: bool | None = None, skipped: str = "") -> None:
        """``holds``: None if the line only reports; ``skipped``: why it was not measured."""
        verdict = f"skipped: {skipped}" if skipped else {None: "", True: "passes", False: "FAILS"}[holds]
        self.failed |= holds is False
        print(f"{what:58} {value!s:>24} {limit!s:>12}  {verdict}", flush=True)

    def most(self, what: str, value: float, estimate: float | None, unit: str, *, least: bool = False) -> None:
        """A figure against its estimate, if there is one."""
        if estimate is None:
            self.add(what, f"{value:.3g} {unit}")
            return
        limit = estimate / _SLACK if least else estimate * _SLACK
        self.add(what, f"{value:.3g} {unit}", f"{limit:.3g}", value >= limit if least else value <= limit)


# --- in the supervisor's interpreter


def nvml(table: Table) -> str:
    """Returns the name of the first GPU; "" without one."""
    from glmtts.daemon.gpu.nvml import NvmlReader

    reader = NvmlReader(time.monotonic)
    reading, gpus = reader.read()
    reader.close()
    if not gpus:
        table.add("NVML", reading.state, skipped="no GPU")
        return ""
    table.add("NVML", f"driver {reading.driver}", "ok", reading.state == "ok")
    for gpu in gpus:
        table.add(f"  {gpu.name}", f"{gpu.vram_total >> 20} MiB", holds=gpu.state == "ok")
    return gpus[0].name


def faults(table: Table) -> None:
    """An out-of-memory and an illegal access: the job gets the error, and a new process speaks the next one."""
    from faulty_daemon import FaultyDaemon
    from load import ask, next_event

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        daemon = FaultyDaemon(stack, folder, "gpu", workers=1, gpus="gpus = [0]")
        client = daemon.client()

        def answer(number: int, fault: str) -> Figures:
            ask(client, {"v": 1, "op": "synthesize", "id": f"{number}", "text": fault, "options": {"fault": fault}})
            while (event := next_event(client))["event"] not in ("done", "error"):
                pass
            return event

        for number, (fault, code) in enumerate((("oom_vram", "out_of_memory"), ("illegal_access", "worker_crashed"))):
            daemon.pids()
            told = answer(2 * number, fault)
            after = answer(2 * number + 1, "audio")
            good = told.get("code") in (code, "cuda_context") and after["event"] == "done"
            table.add(f"{fault} under supervision", told.get("code"), code, good)


def engines(table: Table, given: argparse.Namespace, name: str, cache: str) -> None:
    """Users at once, against upstream's own code: that speaks one by one, so one user says it for any number."""
    import engine

    on_gpu = bool(name)
    common = {"root": given.root, "dtype": "bf16" if on_gpu else "fp32"}
    tokens, users = (0, USERS) if on_gpu else (TOKENS_ON_CPU, USERS_ON_CPU)
    published = estimates(name, given.root)
    with engine.speaker(given.python, common, slots=1, gpu=on_gpu, cache=cache) as off:
        alone = engine.summary([off.speak(1, tokens, seed) for seed in range(2 if on_gpu else 1)])
    batched = common | {"batching": "on", "slots": max(users)}
    with engine.speaker(given.python, batched, slots=0, gpu=on_gpu, cache=cache) as on:
        for count in users:
            found = engine.summary([on.speak(count, tokens, 100)])
            times = found["audio_s_per_work_s"] / alone["audio_s_per_work_s"]
            first = f"{found['first_audio_p50_s']:.2f}, {found['first_audio_p95_s']:.2f} s"
            table.add(f"{count} users: first audio, p50 and p95", first)
            table.add(f"{count} users: memory of the host, of the GPU", memory(found))
            table.add(
                f"{count} users: audio a second, times batching off", f"{times:.2f}", 1, times > 1 if on_gpu else None
            )
            rtf = 1 / found["audio_s_per_s"]
            if count == 1:
                table.most("1 user: RTF", rtf, published and published[2], "")
            else:
                estimate = published[3] if published and count == max(users) else None
                table.most(f"{count} users: audio a second", 1 / rtf, estimate, "s", least=True)


def memory(found: Figures) -> str:
    return f"{found['rss'] >> 20}, {found['gpu'] >> 20} MiB"


def estimates(name: str, root: str) -> Any:
    """Those for this GPU, if the checkpoint is the published one."""
    from glmtts.daemon.engines.glmtts.checkpoint import look

    if look(root).parameters["llm"] < _PUBLISHED_WEIGHTS:
        return None
    return next((figures for part, figures in ESTIMATES.items() if part in name), None)


def models(table: Table, given: argparse.Namespace, name: str, dtype: str, cache: str) -> None:
    """Steps, independence, graphs, the flow model: measured in the root's interpreter."""
    command = [given.python, __file__, "--root", given.root, "--inside", dtype, "--python", given.python]
    command += ["--cache", cache]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([packages(), os.environ.get("PYTHONPATH", "")])}
    if not name:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        table.add(f"{dtype}: language model and flow model", f"ended with {done.returncode}", "0", holds=False)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    published = estimates(name, given.root)
    for rows, of in found["rows"].items():
        estimate = published[0][ROWS.index(int(rows))] if published and dtype == "bf16" else None
        if "skipped" in of:
            table.add(f"{dtype}: a step with {rows} rows", "-", skipped=of["skipped"])
            continue
        table.most(f"{dtype}: a step with {rows} rows", of["ms"], estimate, "ms")
        graphs = f"{dtype}: graphs captured with {rows} rows"
        if name:
            table.add(graphs, of["graphs"], "> 0", of["graphs"] > 0)
        else:
            table.add(graphs, "-", skipped="no GPU")
    table.add(f"{dtype}: equal bits beside other jobs, in other rows", found["independent"], True, found["independent"])
    table.add(
        f"{dtype}: flow model, equal bits beside others", found["flow_independent"], True, found["flow_independent"]
    )
    seconds = (_FLOW_TOKENS if name else _FLOW_TOKENS_ON_CPU) / _TOKENS_PER_S
    table.most(f"{dtype}: flow model, {seconds:g} s of audio", found["flow_ms"], published and published[1], "ms")
    if name and dtype == "fp32":
        table.most("flow model in TF32, 10 s of audio", found["tf32_ms"], None, "ms")
        table.add(
            "flow model in TF32, difference", f"{found['tf32_db']:.0f} dB", _TF32_DB, found["tf32_db"] <= _TF32_DB
        )
    elif not name:
        table.add("flow model in TF32", "-", skipped="no GPU")


def smaller() -> str:
    """What is left out without a GPU."""
    rows, users = (" and ".join(map(str, some)) for some in (ROWS_ON_CPU, USERS_ON_CPU))
    return (
        f"There is no GPU, so less is measured: {rows} rows of {ROWS}, {_STEPS_ON_CPU} steps of {_STEPS}, {users} "
        f"users of {USERS}, {TOKENS_ON_CPU} tokens a sentence, in the flow model {_FLOW_TOKENS_ON_CPU} tokens of "
        f"{_FLOW_TOKENS}."
    )


def packages() -> str:
    """The folder that has this project's package."""
    import glmtts.daemon.engines.base as one

    return str(Path(str(one.__file__)).parents[3])


class TimeIsUpError(Exception):
    """The script has run as long as it may."""


def _time_is_up(*_: object) -> None:
    raise TimeIsUpError


def main(given: argparse.Namespace) -> int:
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(given.seconds)
    table = Table()
    name = nvml(table)
    if not name:
        print(smaller(), flush=True)
    with tempfile.TemporaryDirectory() as empty:
        cache = given.cache or empty
        parts: list[tuple[str, Callable[[], None]]] = [
            ("faults on the GPU", lambda: faults(table)),
            ("fp32", lambda: models(table, given, name, "fp32", cache)),
            ("bf16", lambda: models(table, given, name, "bf16", cache)),
            ("both engines", lambda: engines(table, given, name, cache)),
        ]
        for what, part in parts:
            if what == "faults on the GPU" and not name:
                for fault in ("oom_vram", "illegal_access"):
                    table.add(f"{fault} under supervision", "-", skipped="no GPU")
                continue
            try:
                part()
            except TimeIsUpError:
                table.add(f"{what}, and what follows", "-", skipped="the time is up")
                # What a GPU has not shown does not hold.
                table.failed |= bool(name)
                break
            except Exception as error:
                table.add(what, f"{type(error).__name__}: {error}"[:200], holds=False)
    print(f"{'FAILED' if table.failed else 'all that was measured holds'}, after {time.monotonic() - began:.0f} s")
    return int(table.failed)


# --- in the interpreter of the root


def inside(root: str, dtype: str, cache: str) -> Figures:
    import torch

    from glmtts.daemon.engines.glmtts import flow_batch
    from glmtts.daemon.engines.glmtts.upstream import Upstream

    sys.stdout = sys.stderr
    on_gpu = torch.cuda.is_available()
    upstream = Upstream(Path(root), rates=(24_000,), half_llm=dtype == "bf16", cache_dir=Path(cache))
    sizes, number = (ROWS, _STEPS) if on_gpu else (ROWS_ON_CPU, _STEPS_ON_CPU)
    found: Figures = {"rows": {rows: steps(upstream.llm, rows, number, torch) for rows in sizes}}
    found["independent"] = torch.equal(*(bits(upstream.llm, other, torch) for other in (1, 2)))
    flow = flow_batch.Flow(upstream.flow)
    tokens = _FLOW_TOKENS if on_gpu else _FLOW_TOKENS_ON_CPU
    found["flow_ms"], mel = flow_ms(flow, tokens, torch)
    found["flow_independent"] = torch.equal(mel, flow_ms(flow, tokens, torch)[1])
    if on_gpu and dtype == "fp32":
        flow_batch.set_precision("tf32")
        found["tf32_ms"], other = flow_ms(flow, tokens, torch)
        error = ((other - mel).pow(2).mean() / mel.pow(2).mean()).sqrt()
        found["tf32_db"] = 20 * float(torch.log10(error.clamp(min=1e-9)))
    return found


def readings(llm: Any, seeds: list[int], torch: Any) -> Iterator[Any]:
    """Prompts of random tokens of audio, of about ``_PROMPT_TOKENS``."""
    from glmtts.daemon.engines.glmtts.llm_batch import Reading
    from glmtts.daemon.engines.glmtts.sampling import Draws

    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(llm.ats, llm.ate, (_PROMPT_TOKENS + seed % 50,), generator=generator).tolist()
        yield Reading(f"{seed}", [*ids, llm.boa], Draws("ras", 25, generator, 10_000), 10_000)


def joined(llm: Any, rows: int, some: list[Any]) -> Any:
    from glmtts.daemon.engines.glmtts.llm_batch import BatchedLlm

    batched = BatchedLlm(llm, rows=rows, parked=0, warn=print)
    for one in some:
        batched.join(one)
    while (joining := batched.joining) is not None:
        batched.take_in(joining)
    return batched


def steps(llm: Any, rows: int, number: int, torch: Any) -> Figures:
    """Milliseconds of a step, draws included, and the graphs that were captured."""
    try:
        batched = joined(llm, rows, list(readings(llm, list(range(rows)), torch)))
    except torch.cuda.OutOfMemoryError:
        return {"skipped": "too little memory"}
    taken = []
    for _ in range(number):
        begun = time.perf_counter()
        batched.step()
        taken.append(time.perf_counter() - begun)
    return {"ms": 1e3 * statistics.median(taken), "graphs": len(batched._inputs.graphs)}


def bits(llm: Any, others: int, torch: Any) -> Any:
    """The logits of one reading in 8 rows, in another row and beside others for each value of ``others``."""
    (mine,) = readings(llm, [7], torch)
    beside = list(readings(llm, [100 * others + number for number in range(3 * others)], torch))
    batched = joined(llm, 8, [*beside[: 3 * (others - 1)], mine, *beside[3 * (others - 1) :]])
    seen = []
    logits = batched._logits

    def watched(live: Any) -> Any:
        found = logits(live)
        seen.append(found[live.index(mine)].clone())
        return found

    batched._logits = watched
    for _ in range(12):
        batched.step()
    return torch.stack(seen)


def flow_ms(flow: Any, tokens: int, torch: Any) -> tuple[float, Any]:
    """Milliseconds of a run beside the steps of another one, the voice being cached, and its spectrogram."""
    from glmtts.daemon.engines.glmtts.voices import VoiceFeatures

    draw = torch.Generator().manual_seed(3)
    codes = torch.randint(32_000, (_FLOW_PROMPT + tokens,), generator=draw).tolist()
    mel = torch.randn(1, 2 * _FLOW_PROMPT, 80, generator=draw)
    speaker = torch.randn(1, 192, generator=draw)
    voice = VoiceFeatures("", torch.zeros(1, 1), tuple(codes[:_FLOW_PROMPT]), speaker, {24_000: mel})
    taken = []
    for number in range(3):
        other = flow.start(codes[_FLOW_PROMPT : _FLOW_PROMPT + 9], voice, 24_000, torch.Generator().manual_seed(number))
        other.step()
        begun = time.perf_counter()
        run = flow.start(codes[_FLOW_PROMPT:], voice, 24_000, torch.Generator().manual_seed(5))
        while not run.step():
            pass
        made = run.mel.cpu()
        taken.append(time.perf_counter() - begun)
    return 1e3 * min(taken), made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", required=True, help="a checkout of GLM-TTS with its ckpt/")
    parser.add_argument("--python", required=True, help="the interpreter that has upstream's packages")
    parser.add_argument("--seconds", type=int, default=480, help="end after that")
    parser.add_argument("--cache", default="", help="a folder that keeps the compiled grammar; default: made each time")
    parser.add_argument("--inside", choices=["fp32", "bf16"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.root = str(Path(arguments.root).absolute())
    if arguments.inside:
        answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        print(json.dumps(inside(arguments.root, arguments.inside, arguments.cache)), file=answers, flush=True)
    else:
        sys.exit(main(arguments))
