"""Files that ``/api/tts`` may name: those below the folder, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glmtts.gateway import prompts
from glmtts.gateway.errors import HttpError
from glmtts.gateway.settings import SettingsError, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    (folder / "zh").mkdir(parents=True)
    (folder / "zh" / "anna.wav").write_bytes(b"RIFF")
    (folder / "zh" / "anna.txt").write_text(" 说的话。\n", encoding="utf-8")
    (folder / "ben.v2.wav").write_bytes(b"RIFF2")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.wav")
    (folder / "big.wav").write_bytes(bytes(101))
    return folder


def test_a_file_below_the_folder_comes_with_its_transcript(folder: Path) -> None:
    assert prompts.read(str(folder), "zh/anna.wav", 100) == (b"RIFF", "说的话。")
    assert prompts.read(str(folder), "ben.v2.wav", 100) == (b"RIFF2", "")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../secret.wav",
            "zh/../../secret.wav",
            "zh/../ben.v2.wav",
            "./ben.v2.wav",
            "zh//anna.wav",
            "/etc/passwd",
            "",
        ),
        *("link.wav", "out/secret.wav", "pipe.wav", "zh", "zh/", "none.wav", "a\0.wav", "a" * 5_000, "zh/anna.wav/x"),
        "\ud800.wav",
    ],
)
def test_nothing_else_is_read(folder: Path, name: str) -> None:
    with pytest.raises(HttpError) as refused:
        prompts.read(str(folder), name, 100)
    assert (refused.value.status, refused.value.param) == (400, "prompt_audio")


def test_a_large_file_is_not_read(folder: Path) -> None:
    with pytest.raises(HttpError) as refused:
        prompts.read(str(folder), "big.wav", 100)
    assert refused.value.status == 413


def test_no_file_is_read_where_there_is_no_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HttpError, match="prompts_folder"):
        prompts.read("", str(folder / "ben.v2.wav"), 100)
    assert prompts.is_file_name("zh/anna.wav") and not prompts.is_file_name("安娜-2")
    file = tmp_path / "c.toml"
    for wrong in ("nonesuch", str(tmp_path / "nonesuch")):
        file.write_text(f'[gateway]\nprompts_folder = "{wrong}"\n')
        with pytest.raises(SettingsError, match="prompts_folder"):
            read(file)
