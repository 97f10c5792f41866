"""Starts that can't succeed, and say why; and starts at the same time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glmtts.protocol.worker import Ready

from ..fake_gpu.fake_gpu import FakeGpus
from ..process.conftest import Daemon
from ..process.worker_under_test import Start, WorkerUnderTest
from .test_jobs import SHORT, speak
from .upstream_root import PROMPT_TEXT, Root, recording

_QUICK_RESTART = {"backoff_initial_s": 0.02, "backoff_max_s": 0.1, "breaker_failures": 2}


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    """As a download that ended early."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) * 2 // 3])


def last_words(worker: WorkerUnderTest) -> str:
    """What a worker that can't start says at its end, which is what operators see."""
    assert worker.process.wait(worker.patience_s) != 0
    return worker.log.read_text(errors="replace").strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "damage"), [("ckpt/llm/model.safetensors", _cut), ("cosyvoice/cli/frontend.py", _remove)]
)
def test_a_checkpoint_that_is_not_whole_is_named_at_once(
    own_root: Root, start: Start, file: str, damage: Callable[[Path], None]
) -> None:
    damage(own_root.folder / file)
    words = last_words(start(**own_root.worker()))
    assert file.removeprefix("ckpt/") in words and str(own_root.folder) in words


def unavailable(daemon: Daemon) -> tuple[str, str]:
    """What a client and an operator are told of a daemon whose workers don't start."""
    client = daemon.client()
    id = client.send("synthesize", recording(), text=SHORT, prompt={"text": PROMPT_TEXT})
    error = client.all(id, patience_s=120.0)[0][-1]
    assert error["event"] == "error" and error["code"] == "unavailable" and error["retryable"], error
    return error["message"], json.dumps(daemon.workers(), ensure_ascii=False)


def test_a_damaged_checkpoint_is_named_to_clients_and_operators(
    own_root: Root, start_daemon: Callable[..., Daemon]
) -> None:
    _cut(own_root.folder / "ckpt/flow/flow.pt")
    settings = {"root": str(own_root.folder)}
    daemon = start_daemon(wait=False, settings=settings, workers={"restart": _QUICK_RESTART})
    for words in unavailable(daemon):
        assert "flow.pt" in words


def test_a_checkout_that_is_not_there_is_refused_before_the_daemon_runs(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon(wait=False, settings={"root": str(tmp_path / "nowhere")})
    assert daemon.process.wait(20) != 0
    assert "engine.glmtts.root" in daemon.log() and str(tmp_path / "nowhere") in daemon.log()


def test_a_folder_that_is_no_checkout_is_named(start: Start, root: Root, tmp_path: Path) -> None:
    settings = root.settings(root=str(tmp_path))
    words = last_words(start(**(root.worker() | {"engine_settings": settings})))
    assert str(tmp_path) in words


def test_an_interpreter_that_is_too_old_says_its_version(
    root: Root, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    old = tmp_path / "python3.9"
    old.write_text(
        f"#!{root.python}\n"
        "import sys\n"
        "sys.executable = sys.argv[0]\n"
        "sys.version_info = (3, 9, 18, 'final', 0)\n"
        "sys.version = '3.9.18 (main, Jan  1 2024, 00:00:00) [GCC 12.2.0]'\n"
        "assert sys.argv[1] == '-c'\n"
        "code, sys.argv = sys.argv[2], ['-c', *sys.argv[3:]]\n"
        "exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})\n"
    )
    old.chmod(0o755)
    daemon = start_daemon(wait=False, python=str(old), workers={"restart": _QUICK_RESTART})
    for words in unavailable(daemon):
        assert "3.9.18" in words and "3.11" in words and str(old) in words


def test_a_torch_that_sees_no_gpu_is_named_where_one_is_needed(
    root: Root, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = last_words(start(**root.worker(), needs_gpu=True))
    assert "torch" in words and "CUDA" in words and 'gpus = "none"' in words


@pytest.mark.usefixtures("stand_in")
def test_a_torch_without_cuda_is_named_to_clients_of_a_machine_with_a_gpu(
    start_daemon: Callable[..., Daemon], fake_gpus: FakeGpus
) -> None:
    daemon = start_daemon(
        wait=False,
        workers={"gpus": "all", "restart": _QUICK_RESTART},
        environment=fake_gpus.environment(),
    )
    for words in unavailable(daemon):
        assert "CUDA" in words and "torch" in words


def test_a_dictionary_that_is_wrong_is_named_with_its_line(root: Root, start: Start, tmp_path: Path) -> None:
    dictionary = tmp_path / "words.jsonl"
    dictionary.write_text('{"弈": "<|I4|>"}\n{"天气": "<|NOPE9|>"}\n', encoding="utf-8")
    words = last_words(start(**root.worker(dictionary=str(dictionary))))
    assert f"{dictionary}:2" in words and "NOPE9" in words


# --- the grammar that all workers share


def grammars(cache: Path) -> list[Path]:
    return sorted(cache.rglob("zh_tn_tagger.fst"))


def test_two_workers_that_start_together_compile_the_grammar_once(own_root: Root, start: Start, tmp_path: Path) -> None:
    given = own_root.worker() | {"cache_dir": str(tmp_path / "cache")}
    both = [start(**given), start(**given)]
    # Ready or not: one of them waits for the other.
    assert [type(worker.ready()) for worker in both] == [Ready, Ready]
    (grammar,) = grammars(tmp_path / "cache")
    made = grammar.stat().st_mtime_ns
    third = start(**given)
    third.ready()
    assert grammars(tmp_path / "cache") == [grammar] and grammar.stat().st_mtime_ns == made
    assert len({speak(worker, SHORT) for worker in (*both, third)}) == 1
    if own_root.is_stand_in:
        assert len((grammar.parent / "builds").read_text().splitlines()) == 1
        assert not list((own_root.folder / "tn").glob("*.fst")), "nothing is written where packages are"


def test_a_worker_that_is_killed_while_it_compiles_the_grammar_harms_no_other(
    own_root: Root, start: Start, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    given = own_root.worker() | {"cache_dir": str(cache)}
    killed = start(**given)
    deadline = time.monotonic() + killed.patience_s
    while not list(cache.glob("building-*")):
        assert time.monotonic() < deadline and killed.process.poll() is None, killed.log.read_text()
        time.sleep(0.005)
    os.kill(killed.process.pid, signal.SIGKILL)
    worker = start(**given)
    worker.ready()
    assert speak(worker, SHORT)
    assert len(grammars(cache)) == 1 and not list(cache.glob("building-*"))
