"""Keys and their files: a secret that others can read is refused, and no key is lost or let in by a misread line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from glmtts.protocol import authorised_keys, keys
from glmtts.protocol.authorised_keys import Entry
from glmtts.protocol.keys import KeyProblem

#: Begins as a comment does; one key in 85 is so.
HASH = "#" + keys.generate()[0][1:]


def test_a_pair_belongs_together_and_begins_with_letters() -> None:
    for _ in range(20):
        public, secret = keys.generate()
        assert keys.public_of(secret) == public == zmq.curve_public(secret.encode()).decode()
        assert public[0].isalpha() and secret[0].isalpha() and keys.is_key(public)


def test_a_key_is_taken_as_itself_or_from_its_file(tmp_path: Path) -> None:
    public, _ = keys.generate()
    file = tmp_path / "key"
    file.write_text(f"# somebody's\n\n  {public}\n")
    assert keys.resolve(public, "public") == keys.resolve(str(file), "public") == keys.resolve(file, "public") == public
    file.write_text(f"# a comment\n{HASH}\n")
    assert keys.read(file, "public") == HASH


def test_a_path_of_forty_characters_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "k" * 40
    Path(name).write_text(HASH)
    assert keys.resolve(name, "public") == HASH


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "short\n", f"{HASH}\n{HASH}\n", "\0" * 100, "x" * 70_000],
    ids=["empty", "comment", "short", "two", "binary", "huge"],
)
def test_what_is_no_key_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(KeyProblem, match=str(file)):
        keys.read(file, "public")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_secret_that_others_may_open_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text(keys.generate()[1])
    file.chmod(mode)
    with pytest.raises(KeyProblem, match="chmod 600"):
        keys.read(file, "secret")
    file.chmod(0o600)
    keys.read(file, "secret")


def test_no_key_is_overwritten_and_no_half_of_one_is_left(tmp_path: Path) -> None:
    file = tmp_path / "state" / "keys" / "server.key"
    old = os.umask(0)
    try:
        keys.write(file, "first\n", mode=0o600, replace=False)
    finally:
        os.umask(old)
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        keys.write(file, "second\n", mode=0o600, replace=False)
    assert file.read_text() == "first\n"
    keys.write(file, "third\n", mode=0o600, replace=True)
    assert file.read_text() == "third\n" and [f.name for f in file.parent.iterdir()] == ["server.key"]


def test_lines_are_keys_names_and_comments(tmp_path: Path) -> None:
    public, _ = keys.generate()
    text = f"# who may connect\n\n#{public} disabled\n{public} alice her laptop, since May\n\t{HASH}   bob@office\n"
    assert authorised_keys.parse(text, tmp_path) == [
        Entry(public, "alice", "her laptop, since May"),
        Entry(HASH, "bob@office"),
    ]
    assert Entry(public, "alice").line() == f"{public} alice"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", "no public key"),
        (f"alice {HASH}", "the key comes first"),
        (HASH, "has no name"),
        (f"{HASH} key:alice", "is no name"),
        (f"{HASH} -rf", "is no name"),
        (f"{HASH} {'a' * 65}", "is no name"),
        (f"a{HASH} alice", "no public key"),
        (f"{HASH} first", "line 1 has this name already"),
    ],
    # Each process has a key of its own, and tests are to be called the same in all.
    ids=lambda value: value.replace(HASH, "KEY"),
)
def test_a_bad_line_is_named_by_file_and_number(line: str, reason: str, tmp_path: Path) -> None:
    first, _ = keys.generate()
    path = tmp_path / "authorised_keys"
    path.write_text(f"{first} first\n{line}\n{first} again\n")
    with pytest.raises(KeyProblem) as caught:
        authorised_keys.read(path)
    bad, twice = str(caught.value).splitlines()
    assert bad.startswith(f"{path}:2: ") and reason in bad
    assert twice.startswith(f"{path}:3: ") and "line 1 has this" in twice


def test_a_file_full_of_mistakes_is_not_shown_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyProblem) as caught:
        authorised_keys.parse("bad line\n" * 1_000, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and "980 more" in lines[-1]
