"""A checkout and its checkpoint before anything is loaded: all that is wrong is said at once, with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glmtts.daemon.engines.glmtts.checkpoint import _SOURCES, Checkpoint, CheckpointError, look

from . import glmtts_root as made

GIT = shutil.which("git")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made.make(tmp_path / "GLM-TTS")


def problems(root: Path | str) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        look(root)
    assert all(line and line.isprintable() for line in caught.value.problems)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def problem(root: Path | str) -> str:
    found = problems(root)
    assert len(found) == 1, found
    return found[0]


# --- what is good


def test_a_whole_root_is_told_with_its_rates_and_sizes(root: Path) -> None:
    found = look(root)
    assert found.sample_rates == (24_000, 32_000)
    assert found.parameters == {"llm": 160, "flow": 100, "hift": 200, "vocos2d": 300, "speech_tokenizer": 50}
    assert found.weights_bytes("fp32") == 4 * 810
    assert found.weights_bytes("bf16") == 4 * 810 - 2 * 160
    assert found.remarks == ()


def test_without_the_vocoder_of_32000_hz_the_engine_speaks_at_24000_and_says_so(root: Path) -> None:
    shutil.rmtree(root / "ckpt/vocos2d")
    found = look(root)
    assert found.sample_rates == (24_000,)
    assert "generator_jit.ckpt is missing" in found.remarks[0] and "24000 Hz only" in found.remarks[0]
    assert "vocos2d" not in found.parameters


def test_a_language_model_in_several_files_counts_as_one(root: Path) -> None:
    single = look(root).parameters["llm"]
    folder = root / "ckpt/llm"
    (folder / "model.safetensors").unlink()
    tensors = list(made.llm_tensors().items())
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    made.safetensors(folder / files[0], dict(tensors[:2]))
    made.safetensors(folder / files[1], dict(tensors[2:]))
    weight_map = {name: files[number >= 2] for number, (name, _) in enumerate(tensors)}
    made.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    assert look(root).parameters["llm"] == single
    (folder / files[1]).unlink()
    assert f"llm/{files[1]} missing" in problem(root)
    (folder / "model.safetensors.index.json").unlink()
    assert "llm/model.safetensors.index.json missing" in problem(root)


def test_a_speech_tokenizer_in_several_files_needs_no_index(root: Path) -> None:
    folder = root / "ckpt/speech_tokenizer"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "speech_tokenizer/model-00002-of-00002.safetensors missing" in problem(root)
    made.safetensors(folder / "model-00002-of-00002.safetensors", {"model.encoder.conv2.weight": 11})
    assert look(root).parameters["speech_tokenizer"] == 61


def test_nine_gigabytes_are_looked_at_in_well_under_a_second(root: Path) -> None:
    large = made.llm_tensors() | {"model.layers.1.mlp.down_proj.weight": 1_552_009_216}
    made.safetensors(root / "ckpt/llm/model.safetensors", large, fill=b"")
    made.safetensors(root / "ckpt/speech_tokenizer/model.safetensors", {"model.encoder.a": 700_000_000}, fill=b"")
    began = time.process_time()
    found = look(root)
    assert time.process_time() - began < 0.5, "of work, whatever else the machine does"
    assert found.weights_bytes("fp32") > 9_000_000_000


# --- what is in the wrong place


def test_a_root_that_is_none_is_told_from_one_that_is_elsewhere(root: Path, tmp_path: Path) -> None:
    assert "[engine.glmtts] root is not set" in problem("")
    assert "must be an absolute path" in problem("GLM-TTS")
    assert "does not exist" in problem(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert "is not a folder" in problem(tmp_path / "file")
    assert f"is {root} meant?" in problem(tmp_path)
    assert "is the checkpoint alone" in problem(root / "ckpt")
    assert "not a GLM-TTS checkout" in problem("/etc")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("closed", ["", "ckpt/flow/flow.pt", "ckpt/llm"])
def test_what_may_not_be_read_is_told_with_the_user(closed: str) -> None:
    # pytest's own folders are closed to others, and the package's may be: the code is loaded before.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = made.make(Path(folder) / "GLM-TTS")
        (root / closed).chmod(0)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setuid(65_534)
                look(root)
            except CheckpointError as error:
                status = 0 if f"{root / closed}" in str(error) and "by user 65534" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_weights_one_folder_too_deep_are_found_and_the_command_is_given(root: Path) -> None:
    (root / "ckpt").rename(root / "away")
    (root / "ckpt").mkdir()
    (root / "away").rename(root / "ckpt/GLM-TTS")
    assert f"one level too deep, in GLM-TTS: mv {root}/ckpt/GLM-TTS/* {root}/ckpt/" in problem(root)


def test_no_weights_at_all_are_one_problem_with_the_command_that_fetches_them(root: Path) -> None:
    shutil.rmtree(root / "ckpt")
    assert f"hf download zai-org/GLM-TTS --local-dir {root}/ckpt" in problem(root)


# --- what is missing or damaged


def test_everything_that_is_missing_is_named_at_once(root: Path) -> None:
    needed = [
        "ckpt/llm/config.json",
        "ckpt/llm/model.safetensors",
        "ckpt/flow/config.yaml",
        "ckpt/flow/flow.pt",
        "ckpt/hift/hift.pt",
        "ckpt/speech_tokenizer/config.json",
        "ckpt/speech_tokenizer/preprocessor_config.json",
        "ckpt/speech_tokenizer/model.safetensors",
        "ckpt/vq32k-phoneme-tokenizer/tokenizer_config.json",
        "ckpt/vq32k-phoneme-tokenizer/own.model",
        "frontend/campplus.onnx",
        "configs/custom_replace.jsonl",
        "utils/audio.py",
    ]
    for name in needed:
        (root / name).unlink()
    found = problems(root)
    assert len(found) == 2
    for name in needed:
        assert any(name.removeprefix("ckpt/") in line for line in found), name


@pytest.mark.parametrize("name", [*_SOURCES[1:], "ckpt/vq32k-phoneme-tokenizer/tokenization_own.py"])
def test_each_single_file_that_upstream_opens_is_missed(root: Path, name: str) -> None:
    (root / name).unlink()
    assert name.removeprefix("ckpt/") in problem(root)


WEIGHTS = [
    "ckpt/llm/model.safetensors",
    "ckpt/flow/flow.pt",
    "ckpt/hift/hift.pt",
    "ckpt/vocos2d/generator_jit.ckpt",
    "ckpt/speech_tokenizer/model.safetensors",
]
ONNX = "frontend/campplus.onnx"
JSON = [
    "ckpt/llm/config.json",
    "ckpt/speech_tokenizer/config.json",
    "ckpt/speech_tokenizer/preprocessor_config.json",
    "ckpt/vq32k-phoneme-tokenizer/tokenizer_config.json",
]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 6208036864\n"


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _cut_early(path: Path) -> None:
    os.truncate(path, 20)


@pytest.mark.parametrize("name", [*WEIGHTS, ONNX, *JSON])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(POINTER), "pointer of Git LFS"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>Sign in"), "is a web page"),
        (lambda path: path.write_bytes(b"\0" * 5_000), "is no"),
        (lambda path: (path.unlink(), path.symlink_to("/nonexistent/blob")), "is a link to /nonexistent/blob"),
        (lambda path: path.with_name(f"{path.name}.aria2").touch(), "is not fully downloaded"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    root: Path, name: str, damage: Callable[[Path], object], words: str
) -> None:
    damage(root / name)
    found = problems(root)
    assert any(line.startswith(f"{root / name} ") and words in line for line in found), found


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("cut", [_cut, _cut_early])
def test_weights_that_are_cut_off_are_found_without_reading_them(
    root: Path, name: str, cut: Callable[[Path], None]
) -> None:
    cut(root / name)
    line = problem(root)
    assert line.startswith(f"{root / name} ") and "cut off" in line


def test_weights_of_another_size_than_the_configuration_are_not_filled_up_with_noise(root: Path) -> None:
    made.write_json(root / "ckpt/llm/config.json", {"num_hidden_layers": 28, "tie_word_embeddings": True})
    assert "28 layers, but the weights have no model.layers.2." in problem(root)


def test_a_word_list_with_a_wrong_line_is_named_with_the_line(root: Path) -> None:
    made.write(root / "configs/custom_replace.jsonl", b'{"origin": "a", "new": "b"}\n{"origin": "a"}\n')
    assert "has no JSON object with origin and new in line 2" in problem(root)
    made.write(root / "configs/custom_replace.jsonl", b"")
    assert isinstance(look(root), Checkpoint), "who wants no replacements empties the list"


def test_a_download_that_was_broken_off_is_recognised(root: Path) -> None:
    (root / "ckpt/llm/model.safetensors").unlink()
    left = root / "ckpt/.cache/huggingface/download/llm/x.abc.incomplete"
    made.write(left, b"x")
    assert any(
        "unfinished download (.cache/huggingface/download/llm/x.abc.incomplete)" in line for line in problems(root)
    )
    made.safetensors(root / "ckpt/llm/model.safetensors", made.llm_tensors())
    assert isinstance(look(root), Checkpoint), "what an earlier attempt left does no harm"


def test_many_problems_fit_a_workers_last_words(tmp_path: Path) -> None:
    root = made.make(tmp_path / ("d" * 200) / "GLM-TTS")
    for name in [*WEIGHTS, ONNX, *JSON]:
        (root / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError) as caught:
        look(root)
    assert len(caught.value.problems) == 10
    assert len(str(caught.value)) < 3_300 and "more, which glmttsctl doctor names" in str(caught.value)


# --- the version


def test_the_same_files_have_the_same_version_wherever_and_whenever_they_were_copied(
    root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    for path in root.rglob("*"):
        os.utime(path, (0, 0))
    assert look(root).version == look(tmp_path / "copy").version


@pytest.mark.parametrize(
    "change",
    [
        lambda root: made.safetensors(root / "ckpt/llm/model.safetensors", made.llm_tensors(), fill=b"\3"),
        lambda root: made.torch_zip(root / "ckpt/flow/flow.pt", 400, fill=b"\4"),
        lambda root: made.write(root / "configs/custom_replace.jsonl", b'{"origin": "a", "new": "b"}'),
        lambda root: made.write(root / "own_flow.py", b"# another"),
        lambda root: made.write(root / "ckpt/vq32k-phoneme-tokenizer/special_tokens_map.json", b"{}"),
        lambda root: made.write(root / "llm/glmtts.py", b"# another"),
        lambda root: shutil.rmtree(root / "ckpt/vocos2d"),
    ],
)
def test_whatever_changes_the_sound_changes_the_version(root: Path, change: Callable[[Path], None]) -> None:
    before = look(root).version
    change(root)
    assert look(root).version != before


def test_a_change_in_the_middle_of_large_weights_changes_the_version(root: Path) -> None:
    path = root / "ckpt/llm/model.safetensors"
    made.safetensors(path, made.llm_tensors() | {"large": 5_000_000})
    before = look(root).version
    made.safetensors(path, made.llm_tensors() | {"large": 5_000_000}, fill=b"\5")
    assert look(root).version != before


def _git(*arguments: str | Path) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_the_version_begins_with_the_commit_of_the_checkout(root: Path, tmp_path: Path) -> None:
    assert look(root).version.startswith("src."), "no git checkout"
    _git("init", "-q", tmp_path)
    _git("-C", tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    assert look(root).version.startswith("src."), "a repository around it is not its own"
    _git("init", "-q", root)
    assert look(root).version.startswith("src."), "no commit yet"
    _git("-C", root, "add", ".")
    _git("-C", root, "commit", "-q", "-m", "x")
    expected = f"{_git('-C', root, 'rev-parse', 'HEAD')[:7]}-"
    assert look(root).version.startswith(expected)
    _git("-C", root, "worktree", "add", "-q", "-b", "other", tmp_path / "tree")
    assert look(tmp_path / "tree").version.startswith(expected)


def test_without_git_the_sources_name_the_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".git").mkdir()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert look(root).version.startswith("src.")


def test_the_doctor_reads_it_without_torch_and_numpy() -> None:
    code = "import sys, glmtts.daemon.engines.glmtts.checkpoint; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd="/")
    assert not {"numpy", "torch", "zmq", "psutil"} & set(done.stdout.split())
