"""What upstream itself makes of jobs: its own ``load_models`` and ``generate_long``, called as its batch script does.

Run by the interpreter of a root, in a process of its own: ``reference.py ROOT JOBS``, with a JSON file of ``rate``,
``use_phoneme``, ``grammar`` (a folder with a compiled grammar, or for one) and ``jobs``; each job's samples go into its
``file`` as float32. What is replaced is only what a CPU needs, and what is bounded is only what the job names.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(root: str, jobs_file: str) -> None:
    given = json.loads(Path(jobs_file).read_text(encoding="utf-8"))
    os.chdir(root)
    sys.path.insert(0, root)
    import torch

    if not torch.cuda.is_available():
        _stay_on_cpu(torch)
    import glmtts_inference
    import torchaudio
    from cosyvoice.cli import frontend

    torchaudio.load = _read
    _keep_grammar(frontend, Path(given["grammar"]))
    models = glmtts_inference.load_models(use_phoneme=given["use_phoneme"], sample_rate=given["rate"])
    for job in given["jobs"]:
        speech = _speak(glmtts_inference, models, job, given)
        speech.squeeze(0).float().cpu().numpy().tofile(job["file"])


def _speak(upstream: Any, models: Any, job: dict[str, Any], given: dict[str, Any]) -> Any:
    """The order of upstream's calls for one line of its batch files."""
    import torch

    frontend, text_frontend, _, llm, flow = models
    prompt_text = text_frontend.text_normalize(job["prompt_text"])
    text = text_frontend.text_normalize(job["text"])
    prompt_text_token = frontend._extract_text_token(prompt_text + " ")
    prompt_speech_token = frontend._extract_speech_token([job["prompt_speech"]])
    speech_feat = frontend._extract_speech_feat(job["prompt_speech"], sample_rate=given["rate"])
    embedding = frontend._extract_spk_embedding(job["prompt_speech"])
    cache_speech_token = [prompt_speech_token.squeeze().tolist()]
    flow_prompt_token = torch.tensor(cache_speech_token, dtype=torch.int32).to(upstream.DEVICE)
    cache = {
        "cache_text": [prompt_text],
        "cache_text_token": [prompt_text_token],
        "cache_speech_token": cache_speech_token,
        "use_cache": job.get("use_cache", True),
    }
    llm_forward = upstream.local_llm_forward
    if job.get("max_tokens") or job.get("top_k"):
        llm_forward = functools.partial(_bounded, upstream, job)
    speech, _, _, _ = upstream.generate_long(
        frontend=frontend,
        text_frontend=text_frontend,
        text_info=["0", text],
        cache=cache,
        llm=llm,
        flow=flow,
        embedding=embedding,
        seed=job.get("seed", 0),
        sample_method=job.get("sampling", "ras"),
        flow_prompt_token=flow_prompt_token,
        speech_feat=speech_feat,
        device=upstream.DEVICE,
        local_llm_forward=llm_forward,
        use_phoneme=given["use_phoneme"],
    )
    return speech


def _bounded(upstream: Any, job: dict[str, Any], *, llm: Any, **given: Any) -> Any:
    """Upstream's own forward, with the job's bounds where the token loop takes them."""
    loop = type(llm).inference
    ratio = 20.0
    if limit := job.get("max_tokens"):
        ratio = min(ratio, (limit + 0.5) / given["tts_text_token"].shape[1])
    llm.inference = functools.partial(loop, llm, max_token_text_ratio=ratio)
    try:
        return upstream.local_llm_forward(llm=llm, sampling=job.get("top_k") or 25, **given)
    finally:
        del llm.inference


def _keep_grammar(frontend: Any, folder: Path) -> None:
    """The grammar is compiled once instead of at every start, with the same options."""
    if not hasattr(frontend, "ZhNormalizer"):
        return
    compile_grammar = frontend.ZhNormalizer

    def normaliser(**options: Any) -> Any:
        return compile_grammar(**(options | {"cache_dir": str(folder), "overwrite_cache": False}))

    frontend.ZhNormalizer = normaliser


def _read(path: str, *_: Any, **__: Any) -> tuple[Any, int]:
    """The same samples as torchaudio reads, which from 2.9 on needs FFmpeg for it."""
    import soundfile
    import torch

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def _stay_on_cpu(torch: Any) -> None:
    from torch.overrides import TorchFunctionMode

    class Stay(TorchFunctionMode):  # type: ignore[misc]  # torch is Any here
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if function is torch.Tensor.cuda:
                return args[0]
            args = tuple("cpu" if isinstance(one, str) and one == "cuda" else one for one in args)
            kwargs = kwargs or {}
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs = kwargs | {"device": "cpu"}
            return function(*args, **kwargs)

    # Until the process ends.
    Stay().__enter__()


if __name__ == "__main__":
    main(*sys.argv[1:])
