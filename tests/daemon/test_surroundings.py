"""Folders, files and programs that go while the daemon runs: made again where that is safe, named where it is not."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glmtts.daemon.core.inputs import StoredVoice
from glmtts.daemon.core.settings import DaemonSettings, EngineSettings, Settings, TcpSettings
from glmtts.daemon.log.logger import Logger
from glmtts.daemon.surroundings import Files


class Rig:
    """The files of a daemon whose state is in ``folder/state``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        for name in ("state/outputs", "state/voices/anna", "state/keys"):
            (folder / name).mkdir(parents=True)
        self.python = folder / "python"
        self.python.touch(0o755)
        (self.state / "voices/anna/recording.wav").touch()
        (self.state / "keys/authorised_keys").touch()
        self.config = folder / "glmtts.toml"
        self.config.touch()
        self.log_file = folder / "log"
        self.fd = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self.log = Logger(fd=self.fd, journal=False)
        settings = Settings(
            daemon=DaemonSettings(state_dir=str(self.state)),
            engine=EngineSettings(name="fault", python=str(self.python)),
            tcp=TcpSettings(listen="127.0.0.1:0"),
        )
        self.files = Files(settings, self.config, self.log)

    def look(self) -> dict[str, str]:
        voice = StoredVoice("anna", str(self.state / "voices/anna/recording.wav"), "hello")
        return self.files.look([voice])

    def close(self) -> None:
        self.log.close()
        os.close(self.fd)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with closing(Rig(tmp_path)) as rig:
        assert rig.look() == {}
        yield rig


@pytest.mark.parametrize("path", ["state/outputs", "state", "log"])
def test_what_can_be_made_again_is(rig: Rig, path: str) -> None:
    gone = rig.folder / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert set(rig.look()) <= {"voices", "keys"}
    assert (rig.state / "outputs").is_dir() and gone.exists()
    rig.log.warning("a later line")
    rig.close()
    assert "a later line" in rig.log_file.read_text() and "made again" in rig.log_file.read_text()
    rig.fd = os.open(os.devnull, os.O_WRONLY)


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("state/voices", "voices", "'anna'.*gone.*Put them back"),
        ("state/voices/anna", "voices", "'anna'.*gone.*Put them back"),
        ("state/keys/authorised_keys", "keys", "authorised_keys is gone"),
        ("python", "interpreter", "can't be run.*no worker can be started"),
        ("glmtts.toml", "configuration", "glmtts.toml is gone.*can't be started again"),
    ],
)
def test_what_is_gone_for_good_is_named_until_it_is_back(rig: Rig, path: str, name: str, said: str) -> None:
    place, away = rig.folder / path, rig.folder / "away"
    place.rename(away)
    found = rig.look()
    assert list(found) == [name]
    assert re.search(said, found[name])
    away.rename(place)
    assert rig.look() == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("state/outputs", "outputs"),
        ("state/voices", "voices"),
        ("state", "state_folder"),
        ("glmtts.toml", "configuration"),
        ("python", "interpreter"),
    ],
)
def test_what_comes_back_as_something_else_is_named(rig: Rig, path: str, name: str) -> None:
    place, away = rig.folder / path, rig.folder / "away"
    is_folder = place.is_dir()
    place.rename(away)
    place.touch() if is_folder else place.mkdir()
    found = rig.look()
    assert name in found and str(place) in found[name]
    place.unlink() if is_folder else place.rmdir()
    away.rename(place)
    assert rig.look() == {}


def test_a_folder_is_not_made_on_another_disk_while_its_own_is_not_mounted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(rig.state / "outputs")
    real: Callable[..., os.stat_result] = Path.stat

    def stat(path: Path, **options: Any) -> Any:
        about = real(path, **options)
        return SimpleNamespace(st_dev=about.st_dev + 1, st_mode=about.st_mode) if path == rig.state else about

    monkeypatch.setattr(Path, "stat", stat)
    assert "is gone" in rig.look()["outputs"] and not (rig.state / "outputs").exists()


def test_the_log_is_not_written_into_a_link_that_took_its_name(rig: Rig) -> None:
    rig.log_file.unlink()
    rig.log_file.symlink_to(rig.config)
    assert "can't be made again" in rig.look()["log"]
    rig.log.warning("a line")
    rig.close()
    assert rig.config.read_text() == ""
    rig.fd = os.open(os.devnull, os.O_WRONLY)
