"""The wheel, installed outside the checkout: what a user has who never saw the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel installed in it, without what it depends on, which the tests' environment has."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = folder / "wheels"
    # From a copy: setuptools would put its build folder into the checkout.
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, listed)):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True, timeout=120)
    (wheel,) = wheels.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, timeout=120)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the installed package, from a folder that has nothing of ours."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        timeout=30,
        check=False,
    )


def test_nothing_of_ours_takes_a_common_name_in_site_packages(installed: Path) -> None:
    ours = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert ours == {"glmtts", "bin"}
    assert {path.name for path in (installed / "bin").iterdir()} >= {"glmttsd", "glmttsctl"}


def test_the_installed_daemon_finds_itself_and_its_default_configuration(installed: Path) -> None:
    where = run(installed, "glmtts.daemon.supervisor", "--version")
    assert where.returncode == 0 and where.stdout.startswith("glmttsd "), where.stderr
    default = run(installed, "glmtts.daemon.config", "default")
    assert default.stdout == (ROOT / "etc/glmtts.toml").read_text()


def test_the_units_are_in_the_wheel(installed: Path) -> None:
    packaged = {path.name for path in (installed / "glmtts/systemd").iterdir()}
    assert packaged >= {
        path.name for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".socket", ".conf")
    }


def test_the_installed_demo_speaks(installed: Path, tmp_path: Path) -> None:
    program = "import sys; from glmtts.client.cli import main; sys.argv = ['glmttsctl', 'demo']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo-zh.wav").stat().st_size > 24_000
