"""Checks of GLM-TTS: its files, its packages, CUDA, and the GPU memory of a worker."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..checks import Check, EngineChecks, GpuNeed, State, Workplace, ask, finding, memory, ok, warning, wrong
from . import pronunciation
from .checkpoint import PHONEMES, CheckpointError, look
from .checkpoint_files import read_json
from .device import WORKING_BYTES, batch_bytes, slot_bytes

#: The modules that upstream imports, with their distributions in versions that work together. Without torch and
#: torchaudio, whose versions depend on the GPU's driver.
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

_MODULES = ["torch", "torchaudio", *PACKAGES]
_DISTRIBUTIONS = ["torch", "torchaudio", *(name for name, _ in PACKAGES.values())]

#: Importing all of it takes 15 to 25 s on two cores, and longer from a slow disk or beside other work; listing the
#: distributions takes a second or two. Both together are less than the time of the doctor's group.
_TIMEOUT_S = 26.0

_PACKAGES = "GLM-TTS's packages"
#: Most failed imports in one line.
_MOST = 4

#: Prints the versions of the distributions, and the modules that are not installed.
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

#: Imports each module, torch first; prints its progress and the state of CUDA before each.
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


class GlmttsChecks(EngineChecks):
    """Checks of a checkout with its checkpoint, the user's dictionary, and upstream's packages."""

    def files(self, place: Workplace) -> list[Check]:
        """The checkout and its weights, and the user's dictionary."""
        settings = place.settings
        try:
            found = look(settings["root"])
        except CheckpointError as error:
            return [wrong("GLM-TTS", problem, "no worker can start") for problem in error.problems]
        dtype = settings["dtype"]
        parts = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in found.parameters.items())
        rates = " and ".join(map(str, found.sample_rates))
        seen = (
            f"{found.root}: version {found.version}, {rates} Hz; parameters: {parts}; with the language model in "
            f"{dtype} the weights take {memory(found.weights_bytes(dtype))} (computed)"
        )
        remarks = [ok("GLM-TTS", remark) for remark in found.remarks]
        return [ok("GLM-TTS", seen), *remarks, *_dictionary(found.root, settings["dictionary"])]

    def installed(self, place: Workplace) -> list[Check]:
        """Upstream's packages, listed."""
        listed = ask(place.python, _LIST, json.dumps([_MODULES, _DISTRIBUTIONS]), timeout_s=_TIMEOUT_S)
        if isinstance(listed, str):
            return [_silent(place.python, listed)]
        return judge_packages(place.python, listed["versions"], listed["failed"])

    def packages(self, place: Workplace) -> list[Check]:
        """Upstream's packages, listed and then imported, and CUDA as torch sees it."""
        python = place.python
        began = time.monotonic()
        listed = ask(python, _LIST, json.dumps([_MODULES, _DISTRIBUTIONS]), timeout_s=_TIMEOUT_S)
        if isinstance(listed, str):
            return [_silent(python, listed)]
        if listed["failed"]:
            return judge_packages(python, listed["versions"], listed["failed"])
        left_s = max(1.0, began + _TIMEOUT_S - time.monotonic())
        imported = ask(python, _IMPORT, json.dumps(_MODULES), timeout_s=left_s)
        if isinstance(imported, str):
            return [*judge_packages(python, listed["versions"], {}), _silent(python, f"import of them: {imported}")]
        late = [_silent(python, f"import of {imported['at']}: {imported['late']}")] if "late" in imported else []
        return [
            *judge_packages(python, listed["versions"], imported["failed"], imported.get("took", 0.0)),
            *late,
            *_cuda(place.uses_gpu, python, imported["cuda"]),
        ]

    def gpu_need(self, place: Workplace) -> GpuNeed | None:
        """Computed from the weights."""
        settings = place.settings
        dtype, working, slots = settings["dtype"], WORKING_BYTES, ""
        try:
            weights = look(settings["root"]).weights_bytes(dtype)
            if settings["batching"] == "on":
                config = read_json(Path(settings["root"]) / "ckpt/llm/config.json")
                working = batch_bytes(settings["slots"] or 1, slot_bytes(SimpleNamespace(**config), dtype))
                slots = f" with slots = {settings['slots'] or 1}"
        except (CheckpointError, AttributeError):
            return None
        computed = f"weights in {dtype}, and {memory(working)} for the work{slots}"
        return GpuNeed(weights + working, computed, "" if dtype == "bf16" else '[engine.glmtts] dtype = "bf16"')


def _dictionary(root: Path, file: str) -> list[Check]:
    if not file:
        return []
    try:
        phonemes = set(json.loads((root / PHONEMES).read_bytes()).values())
        # The worker asks the model's tokenizer, which knows the same names.
        words = pronunciation.load(Path(file), lambda token: token[2:-2] in phonemes, phonemes)
    except OSError as error:
        problems = [f"{file}: can't be read: {error.strerror}"]
    except ValueError as error:
        problems = str(error).splitlines()
    else:
        return [ok("dictionary", f"{file}: {len(words)} words")]
    remedy = "correct the line; docs/glmtts.md describes the format of a dictionary"
    return [wrong("dictionary", line, "no worker can start", remedy) for line in problems]


def _silent(python: str, words: str) -> Check:
    if "did not answer" in words:
        remedy = "try again when the machine is idle; for a slow disk, raise [workers] start_timeout_s"
        return warning(_PACKAGES, f"{python}: {words}", "a worker's start takes as long", remedy)
    remedy = "fix the error above; docs/glmtts.md has the versions that work together"
    return wrong(_PACKAGES, f"{python}: {words}", "no worker can start", remedy)


def judge_packages(python: str, versions: dict[str, str], failed: dict[str, str], took_s: float = 0.0) -> list[Check]:
    """Findings about versions and failed imports, with the command that repairs them."""
    pip = f"{python} -m pip install"
    bad = _bad_combinations(pip, versions)
    if failed:
        wanted: list[str] = [name for name in ("torch", "torchaudio") if name in failed]
        wanted += [f"{name}=={version}" for module, (name, version) in PACKAGES.items() if module in failed]
        shown = "; ".join(f"import {name}: {why[:150]}" for name, why in list(failed.items())[:_MOST])
        more = f"; and {len(failed) - _MOST} more" if len(failed) > _MOST else ""
        return [wrong(_PACKAGES, f"{python}: {shown}{more}", "no worker can start", f"{pip} {' '.join(wanted)}"), *bad]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    took = f"; imported in {took_s:.0f} s" if took_s else ""
    return [ok(_PACKAGES, f"{python}: {shown}{took}"), *bad]


def _bad_combinations(pip: str, versions: dict[str, str]) -> list[Check]:
    """Versions that can be imported, but fail later or change the speech."""

    def at_least(name: str, *least: int) -> bool:
        return name in versions and tuple(map(int, re.findall(r"\d+", versions[name])[: len(least)])) >= least

    found: list[tuple[State, str, str]] = []
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
        finding(state, _PACKAGES, f"{name} {versions[name]}", means, f"{pip} {name}=={known[name]}")
        for state, name, means in found
    ]


def _cuda(uses_gpu: bool, python: str, cuda: dict[str, Any]) -> list[Check]:
    """Whether torch has the CUDA that the configuration needs."""
    if not cuda:
        return []
    seen = f"torch {cuda['torch']}, built " + (f"for CUDA {cuda['built']}" if cuda["built"] else "without CUDA")
    if not uses_gpu:
        return [ok("torch", f'{seen}; no GPU is to be used ([workers] gpus = "none")')]
    if cuda["there"]:
        return [ok("torch", f"{seen}; it finds a GPU")]
    if cuda["built"]:
        remedy = "see the driver above: a GPU must be there, and its driver new enough for this CUDA"
    else:
        remedy = (
            f"{python} -m pip install --force-reinstall torch torchaudio, in a build for CUDA (pytorch.org); or, to "
            'try it without a GPU, [workers] gpus = "none"'
        )
    means = "no worker can start: without a GPU it would be too slow, and is refused"
    return [wrong("torch", f"{seen}; it finds no GPU", means, remedy)]
