"""What the doctor sees of GLM-TTS, where it is the engine: its files, its packages, CUDA, and room on the GPUs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..core.inputs import GpuReading
from ..core.settings import Settings
from ..engines.glmtts import pronunciation
from ..engines.glmtts.checkpoint import PHONEMES, Checkpoint, CheckpointError, look
from ..engines.glmtts.device import WORKING_BYTES
from ..gpu.nvml import NvmlReader
from .check import Check, memory, needs_gpu
from .engine import ask
from .gpu import is_worker

#: What upstream imports, by the distribution that brings it, in versions that are known to work together. torch and
#: torchaudio are not among them: which of these is right depends on the GPU's driver.
PACKAGES: dict[str, tuple[str, str]] = {
    "transformers": ("transformers", "4.57.3"),
    "peft": ("peft", "0.18.1"),
    "numpy": ("numpy", "1.26.4"),
    "scipy": ("scipy", "1.15.3"),
    "safetensors": ("safetensors", "0.7.0"),
    "tqdm": ("tqdm", "4.66.4"),
    "yaml": ("PyYAML", "6.0.3"),
    "hyperpyyaml": ("HyperPyYAML", "1.2.2"),
    "ruamel.yaml": ("ruamel.yaml", "0.18.15"),
    "einops": ("einops", "0.8.1"),
    "x_transformers": ("x_transformers", "1.42.26"),
    "librosa.filters": ("librosa", "0.9.2"),
    "onnxruntime": ("onnxruntime", "1.22.1"),
    "tn.chinese.normalizer": ("WeTextProcessing", "1.0.3"),
    "contractions": ("contractions", "0.1.73"),
    "inflect": ("inflect", "7.3.1"),
    "emoji": ("emoji", "2.14.1"),
    "pronouncing": ("pronouncing", "0.2.0"),
    "jieba": ("jieba", "0.42.1"),
    "pypinyin": ("pypinyin", "0.44.0"),
    "tiktoken": ("tiktoken", "0.12.0"),
    "regex": ("regex", "2025.9.1"),
    "pkg_resources": ("setuptools", "80.9.0"),
}

#: Importing all of it takes 15 to 25 s on two cores, and longer from a slow disk or beside other work. Which packages
#: are there is known in a second or two. Both together are less than the group's time (doctor.py).
_TIMEOUT_S = 26.0

#: How many imports that fail one line tells of.
_MOST = 4

#: Which distributions are there, in which versions, and which modules can't even be found.
_LIST = """
import importlib.metadata, importlib.util, json, sys
modules, distributions = json.loads(sys.argv[1])
versions = {}
for name in distributions:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
failed = {name: "not installed" for name in modules if importlib.util.find_spec(name.split(".")[0]) is None}
print(json.dumps({"versions": versions, "failed": failed}))
"""

#: Imports each module that it is given, torch first, and says after each one how far it came and what CUDA is like.
_IMPORT = """
import importlib, json, os, sys, time, warnings
warnings.simplefilter("ignore")
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # without a context, which takes memory of the GPU
said = {"failed": {}, "cuda": {}, "at": "torch"}
began = time.monotonic()
for name in json.loads(sys.argv[1]):
    said["at"] = name
    print(json.dumps(said), flush=True)
    try:
        module = importlib.import_module(name)
        if name == "torch":
            there = module.cuda.is_available()
            said["cuda"] = {"torch": module.__version__, "built": module.version.cuda, "there": there}
    except Exception as error:
        said["failed"][name] = f"{type(error).__name__}: {error}"
print(json.dumps(said | {"took": time.monotonic() - began}))
"""


def checkpoint(settings: Settings) -> list[Check]:
    """The checkout and its weights."""
    if settings.engine.name != "glmtts":
        return []
    try:
        found = look(settings.engine.glmtts.root)
    except CheckpointError as error:
        return [
            Check(name="GLM-TTS", state="wrong", seen=problem, means="no worker can start")
            for problem in error.problems
        ]
    dtype = settings.engine.glmtts.dtype
    parts = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in found.parameters.items())
    rates = " and ".join(map(str, found.sample_rates))
    return [
        Check(
            name="GLM-TTS",
            seen=f"{found.root}: version {found.version}, {rates} Hz; parameters: {parts}; with the language model in "
            f"{dtype} the weights take {memory(found.weights_bytes(dtype))} (computed)",
        ),
        *(Check(name="GLM-TTS", seen=remark) for remark in found.remarks),
    ]


def dictionary(settings: Settings) -> list[Check]:
    """The user's own dictionary of how words are said."""
    file = settings.engine.glmtts.dictionary
    if settings.engine.name != "glmtts" or not file:
        return []
    try:
        phonemes = set(json.loads((Path(settings.engine.glmtts.root) / PHONEMES).read_bytes()).values())
    except (OSError, ValueError, AttributeError):
        return []  # which is wrong with the checkout, and told there
    try:
        # The worker asks the model's tokenizer, which knows the same names.
        words = pronunciation.load(Path(file), lambda token: token[2:-2] in phonemes, phonemes)
    except OSError as error:
        return [_wrong_dictionary(f"{file}: can't be read: {error.strerror}")]
    except ValueError as error:
        return [_wrong_dictionary(line) for line in str(error).splitlines()]
    return [Check(name="dictionary", seen=f"{file}: {len(words)} words")]


def _wrong_dictionary(seen: str) -> Check:
    return Check(
        name="dictionary",
        state="wrong",
        seen=seen,
        means="no worker can start",
        mend="correct the line; docs/glmtts.md says how a dictionary is written",
    )


def packages(settings: Settings) -> list[Check]:
    """What upstream imports, looked for and then imported in the engine's Python; and CUDA as its torch sees it."""
    if settings.engine.name != "glmtts":
        return []
    path = config.engine_python(settings)
    modules = ["torch", "torchaudio", *PACKAGES]
    distributions = ["torch", "torchaudio", *(name for name, _ in PACKAGES.values())]
    began = time.monotonic()
    listed = ask(path, _LIST, json.dumps([modules, distributions]), timeout_s=_TIMEOUT_S)
    if isinstance(listed, str):
        return [_silent(path, listed)]
    if listed["failed"]:
        return judge_packages(path, listed["versions"], listed["failed"])
    left_s = max(1.0, began + _TIMEOUT_S - time.monotonic())
    imported = ask(path, _IMPORT, json.dumps(modules), timeout_s=left_s)
    if isinstance(imported, str):
        return [*judge_packages(path, listed["versions"], {}), _silent(path, f"import of them: {imported}")]
    late = [_silent(path, f"import of {imported['at']}: {imported['late']}")] if "late" in imported else []
    return [
        *judge_packages(path, listed["versions"], imported["failed"], imported.get("took", 0.0)),
        *late,
        *_cuda(settings, path, imported["cuda"]),
    ]


def _silent(python: str, words: str) -> Check:
    late = "did not answer" in words
    return Check(
        name="GLM-TTS's packages",
        state="warning" if late else "wrong",
        seen=f"{python}: {words}",
        means="a worker's start takes as long" if late else "no worker can start",
        mend="try again when the machine is idle; a slow disk wants [workers] start_timeout_s raised"
        if late
        else "what the words above say; docs/glmtts.md has the versions that work together",
    )


def judge_packages(python: str, versions: dict[str, str], failed: dict[str, str], took_s: float = 0.0) -> list[Check]:
    """What versions and failed imports mean, and the command that mends them."""
    pip = f"{python} -m pip install"
    bad = _bad_combinations(pip, versions)
    if failed:
        wanted: list[str] = [name for name in ("torch", "torchaudio") if name in failed]
        wanted += [f"{name}=={version}" for module, (name, version) in PACKAGES.items() if module in failed]
        shown = "; ".join(f"import {name}: {why[:150]}" for name, why in list(failed.items())[:_MOST])
        more = f"; and {len(failed) - _MOST} more" if len(failed) > _MOST else ""
        return [
            Check(
                name="GLM-TTS's packages",
                state="wrong",
                seen=f"{python}: {shown}{more}",
                means="no worker can start",
                mend=f"{pip} {' '.join(wanted)}",
            ),
            *bad,
        ]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    took = f"; imported in {took_s:.0f} s" if took_s else ""
    return [Check(name="GLM-TTS's packages", seen=f"{python}: {shown}{took}"), *bad]


def _bad_combinations(pip: str, versions: dict[str, str]) -> list[Check]:
    """Versions that import, and break later or sound different."""

    def at_least(name: str, *least: int) -> bool:
        return name in versions and tuple(map(int, re.findall(r"\d+", versions[name])[: len(least)])) >= least

    found: list[tuple[Literal["warning", "wrong"], str, str]] = []
    if at_least("ruamel.yaml", 0, 19) and not at_least("HyperPyYAML", 1, 2, 3):
        means = "HyperPyYAML 1.2.2 can't read the flow model's configuration with it, and no worker can start"
        found.append(("wrong", "ruamel.yaml", means))
    if at_least("transformers", 5) and at_least("peft", 0, 17) and not at_least("peft", 0, 18):
        found.append(("wrong", "peft", "it can't be imported with transformers 5, and no worker can start"))
    if at_least("setuptools", 82):
        found.append(("wrong", "setuptools", "librosa and pronouncing import pkg_resources, which it has no more"))
    if at_least("WeTextProcessing", 1, 2):
        found.append(("warning", "WeTextProcessing", "numbers are read in another way than GLM-TTS was made for"))
    known = dict(PACKAGES.values())
    return [
        Check(
            name="GLM-TTS's packages",
            state=state,
            seen=f"{name} {versions[name]}",
            means=means,
            mend=f"{pip} {name}=={known[name]}",
        )
        for state, name, means in found
    ]


def _cuda(settings: Settings, python: str, cuda: dict[str, Any]) -> list[Check]:
    """torch's CUDA against what the configuration asks of it."""
    if not cuda:
        return []
    seen = f"torch {cuda['torch']}, built " + (f"for CUDA {cuda['built']}" if cuda["built"] else "without CUDA")
    if not needs_gpu(settings):
        return [Check(name="torch", seen=f'{seen}; no GPU is to be used ([workers] gpus = "none")')]
    if cuda["there"]:
        return [Check(name="torch", seen=f"{seen}; it finds a GPU")]
    return [
        Check(
            name="torch",
            state="wrong",
            seen=f"{seen}; it finds no GPU",
            means="no worker can start: without a GPU it would be too slow, and is refused",
            mend="see the driver above: a GPU must be there, and its driver new enough for this CUDA"
            if cuda["built"]
            else f"{python} -m pip install --force-reinstall torch torchaudio, in a build for CUDA (pytorch.org); or, "
            'to try it without a GPU, [workers] gpus = "none"',
        )
    ]


def room(settings: Settings) -> list[Check]:
    """Whether the configured number of workers fits each GPU. Blocks as long as the driver does."""
    if not needs_gpu(settings):
        return []
    try:
        found = look(settings.engine.glmtts.root)
    except CheckpointError:
        return []
    reading, gpus = NvmlReader().read()
    return judge_room(settings, found, gpus) if reading.state == "ok" else []


def judge_room(settings: Settings, found: Checkpoint, gpus: Sequence[GpuReading]) -> list[Check]:
    """Whether the workers fit: what they need is computed from the weights, or as the configuration says it."""
    workers, dtype = settings.workers, settings.engine.glmtts.dtype
    each = workers.vram_mib << 20 or found.weights_bytes(dtype) + WORKING_BYTES
    told = (
        "[workers] vram_mib"
        if workers.vram_mib
        else f"computed: weights in {dtype}, and {memory(WORKING_BYTES)} for the work"
    )
    count = min(workers.per_gpu, workers.max or workers.per_gpu)
    needed = each * count
    checks = []
    for gpu in gpus:
        if gpu.state != "ok" or gpu.total is None or (workers.gpus != "all" and gpu.index not in workers.gpus):
            continue
        ours = sum(size or 0 for pid, size in gpu.processes.items() if is_worker(pid))
        free = min(gpu.total, (gpu.free or 0) + ours)
        name = f"GPU {gpu.index} room"
        seen = f"{count} of {memory(each)} ({told}), {memory(free)} of {memory(gpu.total)} free or ours"
        smaller = "" if dtype == "bf16" else ', [engine.glmtts] dtype = "bf16"'
        if needed > gpu.total:
            checks.append(
                Check(
                    name=name,
                    state="wrong",
                    seen=seen,
                    means=f"{count} {'worker does' if count == 1 else 'workers do'} not fit this GPU",
                    mend=f"fewer in [workers] per_gpu{smaller}, or another GPU in [workers] gpus",
                )
            )
        elif needed > free:
            checks.append(
                Check(
                    name=name,
                    state="warning",
                    seen=seen,
                    means="others hold what the workers need: they wait until it is free",
                    mend=f"end the others on this GPU, or fewer in [workers] per_gpu{smaller}",
                )
            )
        else:
            checks.append(Check(name=name, seen=seen))
    return checks
