"""Where the configuration file, the state and the outputs are found, and ``python -m glmtts.daemon.config``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmtts.daemon import config
from glmtts.daemon.config import load
from glmtts.daemon.core.settings import Settings


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLMTTS_CONFIG", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("HOME", "/home/anna")


# --- places


@pytest.mark.usefixtures("bare_environment")
def test_the_file_is_the_first_that_is_named_or_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "SYSTEM_FILE", tmp_path / "glmtts.toml")
    assert config.find() is None
    assert config.read(None) == config.Config(Settings(), None)
    (tmp_path / "glmtts.toml").write_bytes(b"\xef\xbb\xbf[queue]\nmax_waiting = 3\n")
    found = config.find()
    assert config.read(found) == config.Config(config.parse("[queue]\nmax_waiting = 3"), tmp_path / "glmtts.toml")
    monkeypatch.setenv("GLMTTS_CONFIG", "/srv/other.toml")
    assert (config.find(), config.find("")) == (Path("/srv/other.toml"), None)
    link = tmp_path / "link.toml"
    link.symlink_to("glmtts.toml")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(tmp_path)
    assert config.find("link.toml") == link, "absolute, and the link is kept"
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert config.find("my.toml") == Path("my.toml")


@pytest.mark.usefixtures("bare_environment")
def test_state_outputs_and_voices_have_a_place_for_every_kind_of_user(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Settings()
    assert config.state_dir(defaults) == Path("/home/anna/.local/state/glmtts")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert config.state_dir(defaults) == Path("/home/anna/.local/state/glmtts")
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert config.state_dir(defaults) == Path("/srv/state/glmtts")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.state_dir(defaults) == Path("/var/lib/glmtts")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")
    assert config.state_dir(defaults) == Path("/var/lib/a")
    assert config.outputs_dir(defaults) == Path("/var/lib/a/outputs")
    assert config.voices_dir(defaults) == Path("/var/lib/a/voices")
    assert config.engine_python(defaults) == sys.executable
    assert config.engine_python(config.parse('[engine]\npython = "/bin/sh"')) == "/bin/sh"
    named = config.parse('[daemon]\nstate_dir = "/s"\n[audio]\noutputs = "/o"\n[voices]\nfolder = "/v"')
    assert (config.state_dir(named), config.outputs_dir(named), config.voices_dir(named)) == tuple(
        map(Path, ("/s", "/o", "/v"))
    )


@pytest.mark.usefixtures("bare_environment")
def test_a_user_without_a_home_folder_hears_what_to_set_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(config.ConfigError, match=r"daemon\.state_dir: not set, and user 1234 has no home folder"):
        config.read(None)
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert config.read(None).settings == Settings()


# --- the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmtts.daemon.config", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/")


def test_the_command_prints_every_problem_and_fails(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[limits]\nmax_waiting = 3\n[queue]\nmax_per_client = 0\n")
    done = run("check", str(file))
    assert done.returncode == 2 and not done.stdout
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        [str(file), "limits.max_waiting"],
        [str(file), "queue.max_per_client"],
    ]


def test_the_command_prints_the_packaged_file_and_finds_it_good(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text(run("default").stdout)
    done = run("check", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: good\n", "")
    assert run("sing").returncode == 2 and "usage: " in run().stderr


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    code = "import sys, glmtts.daemon.config; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd="/")
    assert not {"numpy", "zmq", "psutil", "soundfile", "asyncio", "subprocess"} & set(done.stdout.split())
