"""The doctor's checks of GLM-TTS: each problem comes with its remedy, and an import that hangs is not waited for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from glmtts.daemon.config.load import parse
from glmtts.daemon.core.inputs import GpuReading
from glmtts.daemon.core.settings import Settings
from glmtts.daemon.doctor import engine as doctor
from glmtts.daemon.engines.checks import Check, Workplace
from glmtts.daemon.engines.glmtts import checks as glmtts_checks
from glmtts.daemon.engines.glmtts.checkpoint import look
from glmtts.daemon.engines.glmtts.checks import GlmttsChecks

from . import glmtts_root as made

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made.make(tmp_path / "GLM-TTS")


def settings(root: Path, *, engine: str = "", glmtts: str = "", workers: str = "") -> Settings:
    return parse(
        f'[engine]\nname = "glmtts"\n{engine}\n[engine.glmtts]\nroot = "{root}"\n{glmtts}\n[workers]\n{workers}\n'
    )


# --- the files


def test_what_is_loaded_is_told_with_its_version_and_sizes(root: Path) -> None:
    check = doctor.files(settings(root))[0]
    assert check.state == "ok"
    assert look(root).version in check.seen and "24000 and 32000 Hz" in check.seen and "fp32" in check.seen


def test_a_vocoder_that_is_left_out_is_told_and_no_fault(root: Path) -> None:
    shutil.rmtree(root / "ckpt/vocos2d")
    checks = doctor.files(settings(root))
    assert [check.state for check in checks] == ["ok", "ok"] and "vocos2d" in checks[1].seen


def test_each_thing_that_is_wrong_with_the_files_is_a_finding_of_its_own(root: Path) -> None:
    (root / "ckpt/flow/flow.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (root / "utils/audio.py").unlink()
    checks = doctor.files(settings(root))
    assert [check.state for check in checks] == ["wrong", "wrong"]
    assert all(check.means for check in checks)
    assert "utils/audio.py" in checks[0].seen and "Git LFS" in checks[1].seen


def test_a_dictionary_with_a_wrong_line_is_named_with_the_line(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.jsonl"
    file.write_text('{"弈": "<|I4|>"}\n\n{"弦": "现", "a": "b"}\n')
    given = settings(root, glmtts=f'dictionary = "{file}"')
    assert doctor.files(given)[-1].seen.endswith("3 words")
    for text, words in (("{}\n{", f"{file}:2: "), ('{"a": "<|I9|>"}', "no phoneme"), ("\xff", "not UTF-8")):
        file.write_bytes(text.encode("latin-1"))
        check = doctor.files(given)[-1]
        assert check.state == "wrong" and words in check.seen and check.mend


def test_another_engine_has_none_of_these_findings() -> None:
    fault = parse('[engine]\nname = "fault"')
    assert doctor.files(fault) == doctor.packages(fault) == doctor.room(fault) == []


# --- the packages


class Python:
    """An interpreter with stand-ins for what upstream imports: modules that say nothing, with versions."""

    def __init__(self, folder: Path) -> None:
        self.packages = folder / "packages"
        self.packages.mkdir()
        self.path = folder / "python"
        self.path.write_text(f'#!/bin/sh\nPYTHONPATH={self.packages} exec {sys.executable} -S "$@"\n')
        self.path.chmod(0o755)
        for module, (name, version) in glmtts_checks.PACKAGES.items():
            self.put(module)
            self.version(name, version)
        self.put("torchaudio")
        self.torch(cuda="None", there=False)

    def put(self, module: str, code: str = "") -> None:
        file = self.packages / f"{module.replace('.', '/')}/__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)

    def version(self, name: str, version: str) -> None:
        for old in self.packages.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        folder = self.packages / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def torch(self, cuda: str, there: bool) -> None:
        code = f"class version: cuda = {cuda}\nclass cuda:\n    is_available = staticmethod(lambda: {there})\n"
        self.put("torch", f'__version__ = "2.11.0"\n{code}')

    def look(self, root: Path, workers: str = 'gpus = "none"') -> list[Check]:
        return doctor.packages(settings(root, engine=f'python = "{self.path}"', workers=workers))


@pytest.fixture
def python(tmp_path: Path) -> Python:
    return Python(tmp_path)


def test_packages_that_work_together_are_listed_with_their_versions(root: Path, python: Python) -> None:
    found = python.look(root)
    assert [check.state for check in found] == ["ok", "ok"], found
    assert "transformers 4.57.3" in found[0].seen and "imported in" in found[0].seen
    assert "built without CUDA; no GPU is to be used" in found[1].seen


def test_what_is_not_installed_is_named_at_once_with_the_command(root: Path, python: Python) -> None:
    shutil.rmtree(python.packages / "pkg_resources")
    shutil.rmtree(python.packages / "tn")
    (check,) = python.look(root)
    assert check.state == "wrong"
    assert check.mend == f"{python.path} -m pip install WeTextProcessing==1.0.3 setuptools==80.9.0"


def test_an_import_that_fails_is_told_in_its_words(root: Path, python: Python) -> None:
    python.put("peft", 'raise ImportError("cannot import name HybridCache")')
    found = python.look(root)
    assert found[0].state == "wrong" and "HybridCache" in found[0].seen and "peft==0.18.1" in found[0].mend


def test_an_import_that_hangs_is_named_and_not_waited_for(
    root: Path, python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glmtts_checks, "_TIMEOUT_S", 3.0)
    python.put("torch", "import threading; threading.Event().wait()")
    found = python.look(root)
    assert any(check.state == "warning" and "import of torch" in check.seen for check in found), found


@pytest.mark.parametrize(
    ("versions", "state", "mend"),
    [
        ({"ruamel.yaml": "0.19.1"}, "wrong", "ruamel.yaml==0.18.15"),
        ({"setuptools": "82.0.1"}, "wrong", "setuptools==80.9.0"),
        ({"transformers": "5.23.0", "peft": "0.17.1"}, "wrong", "peft==0.18.1"),
        ({"transformers": "5.23.0", "peft": "0.7.0"}, "ok", ""),
        ({"transformers": "5.23.0"}, "ok", ""),
        ({"WeTextProcessing": "1.2.0"}, "warning", "WeTextProcessing==1.0.3"),
    ],
)
def test_versions_that_are_known_not_to_work_together_are_told(versions: dict[str, str], state: str, mend: str) -> None:
    known = dict(glmtts_checks.PACKAGES.values()) | versions
    first, *others = glmtts_checks.judge_packages("/p", known, {})
    assert first.state == "ok"
    assert [(check.state, check.mend) for check in others] == ([(state, f"/p -m pip install {mend}")] if mend else [])


def test_a_torch_without_cuda_or_without_a_gpu_is_wrong_where_gpus_are_asked_for(root: Path, python: Python) -> None:
    check = python.look(root, 'gpus = "all"')[-1]
    assert check.state == "wrong" and "without CUDA" in check.seen and 'gpus = "none"' in check.mend
    python.torch(cuda='"13.0"', there=False)
    check = python.look(root, 'gpus = "all"')[-1]
    assert check.state == "wrong" and "CUDA 13.0; it finds no GPU" in check.seen
    python.torch(cuda='"13.0"', there=True)
    assert python.look(root, 'gpus = "all"')[-1].state == "ok"


# --- the GPUs


def gpu(index: int, total: int, free: int) -> GpuReading:
    return GpuReading(index=index, uuid=f"GPU-{index}", total=total, free=free, processes={1: total - free})


def test_gpus_without_room_for_the_workers_are_told_with_the_numbers(root: Path) -> None:
    gpus = [gpu(0, 24 * GIB, 24 * GIB), gpu(1, 24 * GIB, 17 * GIB), gpu(2, 16 * GIB, 16 * GIB), gpu(3, GIB, GIB)]
    need = GlmttsChecks().gpu_need(Workplace("", {"root": str(root), "dtype": "fp32", "batching": "off"}, True))
    assert need and need.bytes == look(root).weights_bytes("fp32") + GIB
    two = settings(root, workers="gpus = [0, 1, 2]\nper_gpu = 2\nvram_mib = 9216")
    checks = doctor.judge_room(two, need, gpus)
    assert [check.state for check in checks] == ["ok", "warning", "wrong"]
    assert "2 of 9.0 GiB ([workers] vram_mib), 17.0 GiB of 24.0 GiB" in checks[1].seen
    assert 'dtype = "bf16"' in checks[2].mend
    computed = doctor.judge_room(settings(root), need, gpus)
    assert [check.state for check in computed] == ["ok", "ok", "ok", "wrong"] and "computed" in computed[0].seen
    one = doctor.judge_room(settings(root, workers="per_gpu = 2\nmax = 1\nvram_mib = 9216"), need, gpus[2:3])
    assert one[0].state == "ok", "more than max are never started"


def test_a_worker_that_batches_needs_memory_for_its_slots(root: Path) -> None:
    config = {"num_hidden_layers": made.LAYERS, "num_key_value_heads": 4, "head_dim": 128, "tie_word_embeddings": True}
    made.write_json(root / "ckpt/llm/config.json", config)
    place = Workplace("", {"root": str(root), "dtype": "bf16", "batching": "on", "slots": 16}, True)
    need = GlmttsChecks().gpu_need(place)
    a_slot = made.LAYERS * 4 * 128 * 2 * 2 * 2_048
    assert need and need.bytes == look(root).weights_bytes("bf16") + 3 * GIB + (16 + 3) * a_slot
    assert "slots = 16" in need.computed
