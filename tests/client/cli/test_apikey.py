"""`glmttsctl apikey`: a key is printed once, and its file lets the gateway recognise it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from glmtts.client.cli import main
from glmtts.protocol import api_keys


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["apikey", *arguments])
    return result.exit_code, result.output


def test_a_new_key_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    status, output = run("new", "anna", "--file", str(file), "--forwards-users")
    key = output.split()[0]
    assert status == 0 and key.startswith("glm-") and key not in file.read_text()
    assert run("new", "bob", "--vip", "--file", str(file))[0] == 0
    found = api_keys.find(api_keys.parse(file.read_text()), key)
    assert found is not None and (found.name, found.forwards_users) == ("anna", True)
    assert file.stat().st_mode & 0o007 == 0
    status, output = run("list", "--file", str(file))
    assert status == 0 and "anna" in output and "vip" in output and key not in output


def test_a_name_is_used_once_and_a_broken_file_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    run("new", "anna", "--file", str(file))
    before = file.read_text()
    for name in ("anna", "a/b", ""):
        assert run("new", name, "--file", str(file))[0] != 0
    assert file.read_text() == before
    file.write_text("nonsense")
    assert run("new", "bob", "--file", str(file))[0] == 1 and file.read_text() == "nonsense"


def test_a_file_or_a_folder_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "none" / "keys.toml"
    status, output = run("list", "--file", str(file))
    assert status == 1 and "apikey new" in output and "Errno" not in output
    status, output = run("new", "anna", "--file", str(file))
    assert status == 1 and f"no folder {file.parent}" in output.replace("\n", " ")


def test_a_removed_key_is_unknown_and_the_others_and_their_comments_stay(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    keys = {name: run("new", name, "--file", str(file))[1].split()[0] for name in ("anna", "bob", "carol")}
    file.write_text(file.read_text().replace('[[key]]\nname = "carol"', '# of the shop\n[[key]]\nname = "carol"'))
    file.chmod(0o600)
    assert run("remove", "bob", "--file", str(file))[0] == 0
    left = api_keys.parse(file.read_text())
    assert [key.name for key in left] == ["anna", "carol"] and "# of the shop" in file.read_text()
    assert api_keys.find(left, keys["bob"]) is None and api_keys.find(left, keys["anna"]) is not None
    assert file.stat().st_mode & 0o777 == 0o600
    status, output = run("remove", "bob", "--file", str(file))
    assert status == 1 and "has no key of bob" in output
    # Other ways to write TOML are not cut into.
    before = f'key = [{{name = "anna", sha256 = "{"0" * 64}"}}, {{name = "bob", sha256 = "{"1" * 64}"}}]\n'
    file.write_text(before)
    status, output = run("remove", "bob", "--file", str(file))
    assert status == 1 and "by hand" in output and file.read_text() == before
