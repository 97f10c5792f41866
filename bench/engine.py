"""Compares upstream's own code (``batching = "off"``) with the batching engine, for 1 to 16 users at once.

Each user asks for one sentence at the same time. Both engines have a process of their own and speak in turn; the
medians of the rounds count. On a CPU the ratio counts, and it is one of processor time (``work_s``), which other work
on the machine does not move. ``make bench ROOT=/path PYTHON_OF_ROOT=/path/bin/python`` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import report
import running
from processes import NotMeasured

from glmtts.daemon.core.settings import GlmttsEngineSettings

HERE = Path(__file__).parent
_SPEAKER = HERE / "engine_speaker.py"
#: A checkpoint with a flow model of this size has it in upstream's own, and most of the time is spent there.
_REAL_FLOW_BYTES = 100 << 20
Round = dict[str, Any]


class Speaker:
    """A process of engine_speaker.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        # It is loaded, and has spoken.
        self._answer()

    def speak(self, users: int, max_tokens: int, seed: int) -> Round:
        requests = self._process.stdin
        assert requests is not None
        requests.write(json.dumps({"users": users, "max_tokens": max_tokens, "seed": seed}) + "\n")
        requests.flush()
        return self._answer()

    def _answer(self) -> Round:
        answers: IO[str] | None = self._process.stdout
        assert answers is not None
        line = answers.readline()
        if not line:
            raise NotMeasured(f"the engine's process has ended with {self._process.wait()}; its log is above")
        answer: Round = json.loads(line)
        return answer


@contextmanager
def speaker(python: str, settings: dict[str, Any], *, slots: int, gpu: bool, cache: str) -> Iterator[Speaker]:
    """An engine that is loaded and has spoken once. ``settings``: changes to the defaults of ``[engine.glmtts]``."""
    whole = msgspec.to_builtins(GlmttsEngineSettings(**settings))
    given = json.dumps({"settings": whole, "slots": slots, "gpu": gpu, "cache": cache})
    path = os.pathsep.join([str(_packages()), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [python, str(_SPEAKER), given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        try:
            yield Speaker(process)
        finally:
            process.terminate()


def _packages() -> Path:
    """The folder that has this project's package."""
    import glmtts.daemon.core.settings as one

    return Path(str(one.__file__)).parents[3]


def measure(given: argparse.Namespace, cache: str) -> report.Results:
    """Both engines, in turn, for each number of users."""
    results: report.Results = {"root": given.root, "rounds": given.rounds, "max_tokens": given.max_tokens, "users": {}}
    common = {"root": str(Path(given.root).absolute()), "dtype": given.dtype, "text_processes": given.text_processes}
    with speaker(given.python, common | {"batching": "off"}, slots=1, gpu=given.gpu, cache=cache) as off:
        for users in given.users:
            # The same segments as upstream's: a first clause by itself would be other work.
            batched = common | {"batching": "on", "slots": given.slots or users, "stream": "segment"}
            with speaker(given.python, batched, slots=0, gpu=given.gpu, cache=cache) as on:
                rounds: dict[str, list[Round]] = {"off": [], "on": []}
                for number in range(given.rounds):
                    for name, one in (("off", off), ("on", on)):
                        rounds[name].append(one.speak(users, given.max_tokens, 1_000 * number))
                        print(f"  {users} users, {name}: {rounds[name][-1]['seconds']:.1f} s", file=sys.stderr)
            results["users"][users] = {name: summary(some) for name, some in rounds.items()}
    return results


def summary(rounds: list[Round]) -> Round:
    """The figures of all rounds of one engine with one number of users."""
    firsts = [first for one in rounds for first in one["first_audio_s"]]

    def median(of: Any) -> float:
        return statistics.median(of(one) for one in rounds)

    def share(*stages: str) -> float:
        return median(lambda one: sum(one["stages"].get(stage, 0.0) for stage in stages) / one["work_s"])

    return {
        "audio_s_per_s": median(lambda one: one["audio_s"] / one["seconds"]),
        "audio_s_per_work_s": median(lambda one: one["audio_s"] / one["work_s"]),
        "first_audio_p50_s": report.percentile(firsts, 0.5),
        "first_audio_p95_s": report.percentile(firsts, 0.95),
        # With the prompts, which upstream takes in there too.
        "tokens_per_s": median(
            lambda one: one["tokens"] / (one["stages"].get("decode", 0.0) + one["stages"].get("prefill", 0.0))
        ),
        "llm_share": share("decode", "prefill"),
        "flow_share": share("flow"),
        "vocoder_share": share("vocoder"),
        "rss": max(one["memory"]["rss"] for one in rounds),
        "gpu": max(one["memory"]["gpu"] for one in rounds),
        "rounds": rounds,
    }


def targets(results: report.Results, *, real_flow: bool) -> list[report.Target]:
    """What is to be reached, in times of upstream's figure."""

    def times(users: int, figure: str) -> float | None:
        both = results["users"].get(users)
        return both["on"][figure] / both["off"][figure] if both else None

    if real_flow:
        wanted = [(1, "audio_s_per_work_s", 1.7), (4, "audio_s_per_work_s", 2.0)]
    else:
        wanted = [(1, "tokens_per_s", 1.8), (16, "tokens_per_s", 5.0)]
    names = {"audio_s_per_work_s": "audio a second", "tokens_per_s": "tokens a second of the language model"}
    return [
        report.Target(f"{names[figure]}, {users} users", times(users, figure), least, "times", at_least=True)
        for users, figure, least in wanted
    ]


#: Titles of the table.
_HEAD = (
    "users | batching | audio s a second, of work | first audio p50, p95 s | tokens a second | LLM, flow, vocoder % "
    "| MiB, on the GPU"
)


def table(results: report.Results) -> list[str]:
    """A line for each engine and number of users."""
    lines = [_HEAD]
    for users, both in results["users"].items():
        for name, of in both.items():
            cells = [
                str(users),
                name,
                f"{of['audio_s_per_s']:.3f}, {of['audio_s_per_work_s']:.3f}",
                f"{of['first_audio_p50_s']:.2f}, {of['first_audio_p95_s']:.2f}",
                f"{of['tokens_per_s']:.1f}",
                ", ".join(f"{100 * of[part]:.0f}" for part in ("llm_share", "flow_share", "vocoder_share")),
                f"{of['rss'] >> 20}, {of['gpu'] >> 20}",
            ]
            lines.append(" | ".join(cells))
    return lines


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", required=True, help="a checkout of GLM-TTS with its ckpt/")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has upstream's packages")
    parser.add_argument("--users", type=numbers, default=[1, 4, 8, 16], help="numbers of users, as in 1,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=60, help="most speech tokens of a sentence")
    parser.add_argument("--slots", type=int, default=0, help="of the batching engine; 0: as many as users")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--text-processes", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--cache", default="", help="a folder that keeps the compiled grammar; default: made each time")
    parser.add_argument("--limit-s", type=int, default=1_800)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    running.end_in_time(given.limit_s)
    with tempfile.TemporaryDirectory() as cache:
        try:
            results = measure(given, given.cache or cache)
        except NotMeasured as error:
            sys.exit(f"engine.py: {error}")
    print("\n".join(table(results)))
    real_flow = (Path(given.root) / "ckpt/flow/flow.pt").stat().st_size > _REAL_FLOW_BYTES
    for target in targets(results, real_flow=real_flow):
        value = "-" if target.value is None else f"{target.value:.2f}"
        print(f"{target.name}: {value} times upstream's, at least {target.bound}: {target.verdict}")
    print(running.save(results, "engine", given.results))


if __name__ == "__main__":
    main()
