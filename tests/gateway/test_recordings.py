"""Recordings in bodies."""

from __future__ import annotations

import base64

import pytest

from glmtts.gateway import bodies
from glmtts.gateway.errors import HttpError


def test_an_mp3_file_whose_base64_looks_like_a_path_is_a_recording() -> None:
    mp3 = b"\xff\xf3\x84\xc4" + bytes(2_000)
    assert bodies.recording(base64.b64encode(mp3).decode(), "ref_audio") == mp3


@pytest.mark.parametrize("source", ["/etc/passwd", "../anna.wav", "https://example.org/anna.wav", "file:///etc/passwd"])
def test_paths_and_addresses_are_refused(source: str) -> None:
    with pytest.raises(HttpError, match="addresses and paths are not read"):
        bodies.recording(source, "ref_audio")
