"""The keys of a client: which are used, and what is said when one is missing or can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtts.client import Client, GlmttsError
from glmtts.client.curve import CurveKeys, find_keys
from glmtts.protocol import keys

TCP = "tcp://127.0.0.1:5555"
SERVER, _ = keys.generate()
PUBLIC, SECRET = keys.generate()


@pytest.fixture(autouse=True)
def no_keys_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLMTTS_SERVER_KEY", "GLMTTS_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_keys_are_those_given_or_the_environment_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_keys(TCP, None, None) is None
    assert find_keys(TCP, SERVER, SECRET) == CurveKeys(SERVER, PUBLIC, SECRET)
    keys.write(tmp_path / "my.key", SECRET, mode=0o600, replace=False)
    monkeypatch.setenv("GLMTTS_SERVER_KEY", SERVER)
    monkeypatch.setenv("GLMTTS_SECRET_KEY", str(tmp_path / "my.key"))
    assert find_keys(TCP, None, None) == CurveKeys(SERVER, PUBLIC, SECRET)
    other_public, other = keys.generate()
    assert find_keys(TCP, None, other) == CurveKeys(SERVER, other_public, other)


def test_a_local_connection_needs_no_keys_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTTS_SERVER_KEY", SERVER)
    monkeypatch.setenv("GLMTTS_SECRET_KEY", "/nowhere")
    assert find_keys("ipc:///run/glmtts/glmtts.sock", None, None) is None
    with pytest.raises(GlmttsError, match="leave them out"):
        find_keys("ipc:///run/glmtts/glmtts.sock", SERVER, SECRET)


def test_one_key_alone_never_means_a_connection_without_encryption() -> None:
    with pytest.raises(GlmttsError, match="GLMTTS_SECRET_KEY"):
        Client(TCP, server_key=SERVER)
    with pytest.raises(GlmttsError, match="GLMTTS_SERVER_KEY"):
        Client(TCP, secret_key=SECRET)


def test_a_key_that_can_t_be_used_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    for bad in ("too-short", tmp_path / "nowhere"):
        with pytest.raises(GlmttsError, match=r"can't be read"):
            Client(TCP, server_key=bad, secret_key=SECRET)
    open_to_all = tmp_path / "my.key"
    open_to_all.write_text(SECRET)
    open_to_all.chmod(0o644)
    with pytest.raises(GlmttsError, match="chmod 600"):
        Client(TCP, server_key=SERVER, secret_key=open_to_all)
