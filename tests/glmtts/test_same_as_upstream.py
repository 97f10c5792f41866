"""What the engine speaks is what upstream speaks, sample by sample: nobody should hear that a daemon is between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..process.worker_under_test import WorkerUnderTest
from .upstream_root import PROMPT_TEXT, Root, Samples, floats, recording

CHINESE = "今天天气不错，我们去公园散步吧。"
ENGLISH = (
    "The weather is nice today, and so we shall go for a walk in the park, if you would like to come with me. "
    "Are you well, and is everybody at home happy? I have not heard of you for a long time, my dear friend."
)
MIXED = (
    "我们在 Berlin 的办公室有 12 个人，每天早上九点开会，讨论 new projects 和客户的问题。"
    "下午大家各自工作，有时候也一起喝咖啡，聊聊周末的计划，或者去楼下的花园里散步。"
    "如果您有 time，欢迎来参观，我们会带您看看新的实验室和图书馆，还有弈棋室！"
)
#: Every option and every kind of text, in combinations; a segment of the real thing takes a second for forty tokens.
JOBS: dict[str, dict[str, Any]] = {
    "chinese": {"text": CHINESE, "seed": 0},
    "english": {"text": ENGLISH, "seed": 7, "max_tokens": 60},
    "english without cache": {"text": ENGLISH, "seed": 7, "use_cache": False, "max_tokens": 60},
    "mixed top-k": {"text": MIXED, "seed": 0, "sampling": "topk", "max_tokens": 40},
    "mixed top-5 without cache": {
        "text": MIXED,
        "seed": 2**32 - 1,
        "sampling": "topk",
        "top_k": 5,
        "use_cache": False,
        "max_tokens": 40,
    },
    "mixed": {"text": MIXED, "seed": 3, "max_tokens": 60},
}
Upstream = Callable[[int, bool, str], Samples]


@pytest.fixture(scope="module")
def upstream(root: Root, tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """``upstream(rate, use_phoneme, job)``: what upstream makes of it. It needs a process for each rate."""
    said: dict[tuple[int, bool], dict[str, Samples]] = {}

    def says(rate: int, use_phoneme: bool, name: str) -> Samples:
        if (rate, use_phoneme) not in said:
            folder = tmp_path_factory.mktemp("reference")
            prompt = _prompt_file(folder)
            jobs = [{"prompt_text": PROMPT_TEXT, "prompt_speech": str(prompt)} | job for job in JOBS.values()]
            samples = root.upstream_says(folder, jobs, rate=rate, use_phoneme=use_phoneme)
            said[rate, use_phoneme] = dict(zip(JOBS, samples, strict=True))
        return said[rate, use_phoneme][name]

    return says


def _prompt_file(folder: Path) -> Path:
    path = folder / "prompt.wav"
    path.write_bytes(recording())
    return path


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("use_phoneme", [False, True], ids=["characters", "phonemes"])
@pytest.mark.parametrize("rate", [24_000, 32_000])
def test_a_job_sounds_as_upstream_itself_would_have_it(
    worker: WorkerUnderTest, upstream: Upstream, rate: int, use_phoneme: bool, name: str
) -> None:
    expected = upstream(rate, use_phoneme, name)
    job = dict(JOBS[name])
    text, seed = job.pop("text"), job.pop("seed")
    for stream in (False, True):
        finished, audio = worker.speak(
            text,
            recording(),
            prompt_text=PROMPT_TEXT,
            format="pcm_f32le",
            sample_rate=rate,
            seed=seed,
            stream=stream,
            options=job | {"use_phoneme": use_phoneme},
        )
        samples = floats(audio)
        assert finished.sample_rate == rate and len(samples) == len(expected)
        assert np.abs(samples - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.01
