"""`glmttsctl install-service` into another root: what is put there, what is never overwritten, and what goes again."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glmtts.client.cli import main, service, service_files

ROOT = Path(__file__).resolve().parents[3]
UNITS = "usr/local/lib/systemd/system"
Run = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Where the tests run, others may not be able to read the checkout, which is said and tested below.
    monkeypatch.setattr(service, "closed_folder", lambda _: None)
    (tmp_path / "etc").mkdir()
    return tmp_path


@pytest.fixture
def run(root: Path) -> Run:
    def call(command: str, *arguments: str, status: int = 0) -> Result:
        result = CliRunner().invoke(main, [command, "--root", str(root), *arguments])
        assert result.exit_code == status, result.output + result.stderr
        return result

    return call


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_what_is_installed_runs_this_installation_s_daemon(run: Run, root: Path) -> None:
    run("install-service", "--yes")
    assert files(root) == {
        f"{UNITS}/glmtts.service",
        f"{UNITS}/glmtts.socket",
        "usr/local/lib/sysusers.d/glmtts.conf",
        "usr/local/lib/tmpfiles.d/glmtts.conf",
        "usr/local/share/glmtts-supervisor/service-files.json",
        "etc/glmtts/glmtts.toml",
    }
    unit = (root / UNITS / "glmtts.service").read_text()
    scripts = sysconfig.get_path("scripts")
    assert f"\nExecStart={scripts}/glmttsd --config /etc/glmtts/glmtts.toml\n" in unit
    assert f"\nExecReload={scripts}/glmttsctl reload\n" in unit
    assert (root / "etc/glmtts/glmtts.toml").read_text() == (ROOT / "etc/glmtts.toml").read_text()
    assert {oct(path.stat().st_mode & 0o777) for path in root.rglob("*.service")} == {"0o644"}


def test_a_dry_run_names_every_file_and_writes_none(run: Run, root: Path) -> None:
    told = run("install-service", "--dry-run").output
    assert files(root) == set()
    run("install-service", "--yes")
    for name in files(root) - {"usr/local/share/glmtts-supervisor/service-files.json"}:
        assert f"{root / name}: put in place" in told
    assert "is there already" in run("install-service", "--dry-run").output
    told = json.loads(run("uninstall-service", "--dry-run", "--json").output)
    assert len(told["files"]) == 5 and not told["done"]
    assert len(files(root)) == 6


def test_uninstalling_leaves_the_folder_as_it_was_found(run: Run, root: Path) -> None:
    theirs = root / "usr/local/lib/systemd/system/other.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\n")
    run("install-service", "--yes")
    run("uninstall-service", "--yes")
    assert files(root) == {f"{UNITS}/other.service"}
    assert {p.name for p in root.iterdir()} == {"etc", "usr"}
    assert {p.name for p in (root / "usr/local").iterdir()} == {"lib"} and not list((root / "etc").iterdir())
    run("uninstall-service", "--yes", status=1)


def test_what_somebody_has_changed_is_neither_overwritten_nor_removed(run: Run, root: Path) -> None:
    run("install-service", "--yes")
    unit, config = root / UNITS / "glmtts.service", root / "etc/glmtts/glmtts.toml"
    unit.write_text("[Service]\n# mine\n")
    config.write_text("# mine\n")
    (root / UNITS / "glmtts.socket").unlink()
    refused = run("install-service", "--yes", status=1)
    assert str(unit) in refused.stderr and "drop-in" in refused.stderr
    assert not (root / UNITS / "glmtts.socket").exists(), "all or nothing"
    told = run("uninstall-service", "--yes").output
    assert f"{unit}: stays, because it was edited" in told
    assert files(root) == {f"{UNITS}/glmtts.service", "etc/glmtts/glmtts.toml"}
    assert config.read_text() == "# mine\n"


def test_a_new_version_replaces_what_is_unchanged_and_keeps_the_configuration(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("install-service", "--yes")
    unit, config = root / UNITS / "glmtts.service", root / "etc/glmtts/glmtts.toml"
    config.write_text("# mine\n")
    packaged = service_files._packaged
    monkeypatch.setattr(service_files, "_packaged", lambda name: packaged(name) + "# newer\n")
    told = run("install-service", "--yes").output
    assert f"{unit}: replaced" in told and f"{config}: stays as it is" in told
    assert unit.read_text().endswith("# newer\n") and config.read_text() == "# mine\n"
    run("uninstall-service", "--yes")
    assert files(root) == {"etc/glmtts/glmtts.toml"}


def test_a_file_that_was_there_before_is_not_taken_for_ours(run: Run, root: Path) -> None:
    there = root / "etc/glmtts/glmtts.toml"
    there.parent.mkdir()
    there.write_text((ROOT / "etc/glmtts.toml").read_text())
    run("install-service", "--yes")
    run("uninstall-service", "--yes")
    assert files(root) == {"etc/glmtts/glmtts.toml"}


def test_instances_share_their_units_and_go_one_by_one(run: Run, root: Path) -> None:
    for name in ("en", "zh"):
        run("install-service", "--yes", "--instance", name)
    assert files(root) == {
        f"{UNITS}/glmtts@.service",
        f"{UNITS}/glmtts@.socket",
        "usr/local/lib/sysusers.d/glmtts.conf",
        "usr/local/lib/tmpfiles.d/glmtts-en.conf",
        "usr/local/lib/tmpfiles.d/glmtts-zh.conf",
        "usr/local/share/glmtts-supervisor/service-files.json",
        "etc/glmtts/en.toml",
        "etc/glmtts/zh.toml",
    }
    assert "d /run/glmtts-en 0755 glmtts glmtts -\n" in (root / "usr/local/lib/tmpfiles.d/glmtts-en.conf").read_text()
    run("uninstall-service", "--yes", "--instance", "en")
    assert len(files(root)) == 6 and not any("en." in name for name in files(root))
    run("uninstall-service", "--yes", "--instance", "zh")
    assert files(root) == set()


@pytest.mark.parametrize("name", ["", "a-b", "A", "../x", "a b", "x" * 40])
def test_an_instance_s_name_that_would_be_another_path_is_refused(run: Run, root: Path, name: str) -> None:
    assert "can't be called" in run("install-service", "--yes", "--instance", name, status=1).stderr
    assert files(root) == set()


def test_a_damaged_list_is_said_and_nothing_is_guessed(run: Run, root: Path) -> None:
    run("install-service", "--yes")
    before = files(root)
    (root / "usr/local/share/glmtts-supervisor/service-files.json").write_text("{")
    assert "damaged" in run("uninstall-service", "--yes", status=1).stderr
    assert files(root) == before


def test_nobody_is_asked_where_nobody_can_answer(run: Run, root: Path) -> None:
    run("install-service", status=130)
    assert files(root) == set()


def test_an_installation_that_the_service_could_not_read_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    closed.chmod(0o700)
    tmp_path.chmod(0o755)
    found = service_files.closed_folder(closed / "bin/glmttsd")
    # Or the interpreter itself is where nobody else can read it.
    assert found in (closed, *closed.parents, *Path(sys.executable).resolve().parents)


def directives(name: str) -> list[str]:
    lines = (ROOT / "systemd" / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("kind", ["service", "socket"])
def test_an_instance_is_run_exactly_as_the_one_service_is(kind: str) -> None:
    expected = [
        re.sub(r"(?<=/run/glmtts)|(?<=RuntimeDirectory=glmtts)|(?<=StateDirectory=glmtts)", "-%i", line)
        .replace("glmtts.socket", "glmtts@%i.socket")
        .replace("/etc/glmtts/glmtts.toml", "/etc/glmtts/%i.toml")
        .replace("speech daemon", "speech daemon %i")
        for line in directives(f"glmtts.{kind}")
    ]
    assert directives(f"glmtts@.{kind}") == expected
