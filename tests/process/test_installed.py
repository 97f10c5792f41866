"""The wheel, installed outside the checkout: what a user has who never saw the repository."""

from __future__ import annotations

import os
import re
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


def run(installed: Path, *arguments: str, cwd: Path | None = None, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python with the installed package, from a folder that has nothing of ours; ``path``: folders before it."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd or installed.parent,
        env=os.environ | {"PYTHONPATH": f"{path}{installed}"},
        timeout=60,
        check=False,
    )


@pytest.fixture
def clients_alone(tmp_path: Path) -> str:
    """For ``path``: Python without the packages that the extras bring."""
    extras = (
        "numpy",
        "soundfile",
        "soxr",
        "pynvml",
        "prometheus_client",
        "espeakng_loader",
        "psutil",
        "torch",
        "uvicorn",
    )
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({extras}))\n")
    return f"{tmp_path}:"


def test_nothing_of_ours_takes_a_common_name_in_site_packages(installed: Path) -> None:
    ours = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert ours == {"glmtts", "bin"}
    assert {path.name for path in (installed / "bin").iterdir()} >= {"glmttsd", "glmttsctl"}


def test_the_installed_daemon_finds_itself_and_its_default_configuration(installed: Path) -> None:
    where = run(installed, "-m", "glmtts.daemon.supervisor", "--version")
    assert where.returncode == 0 and where.stdout.startswith("glmttsd "), where.stderr
    default = run(installed, "-m", "glmtts.daemon.config", "default")
    assert default.stdout == (ROOT / "etc/glmtts.toml").read_text()


def test_the_units_are_in_the_wheel(installed: Path) -> None:
    packaged = {path.name for path in (installed / "glmtts/systemd").iterdir()}
    assert packaged >= {
        path.name for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".socket", ".conf")
    }


DEMO = "from glmtts.client.cli import main; main(['demo'])"


def test_the_installed_demo_speaks(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "-c", DEMO, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo-zh.wav").stat().st_size > 24_000


def test_a_client_brings_five_packages_and_only_glmtts_brings_torch(installed: Path) -> None:
    (metadata,) = installed.glob("glmtts_supervisor-*.dist-info/METADATA")
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*(.*)$", metadata.read_text(), re.MULTILINE)
    assert {name for name, extra in required if not extra} == {"click", "msgpack", "msgspec", "pyzmq", "rich"}
    assert {extra for name, extra in required if name.startswith("torch")} == {'; extra == "glmtts"'}


def test_clients_need_none_of_the_daemon_s_packages(installed: Path, clients_alone: str) -> None:
    every_module = (
        "import importlib, pkgutil, glmtts.client, glmtts.protocol\n"
        "for package in glmtts.client, glmtts.protocol:\n"
        "  for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    print(importlib.import_module(module.name).__name__)\n"
    )
    done = run(installed, "-c", every_module, path=clients_alone)
    assert done.returncode == 0, done.stderr
    assert {"glmtts.client.sync", "glmtts.client.cli.doctor", "glmtts.protocol.codec"} <= set(done.stdout.split())


def test_programs_without_their_packages_say_what_to_install(installed: Path, clients_alone: str) -> None:
    done = run(installed, "-c", DEMO.replace("demo", "serve"), path=clients_alone)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    pip = f"{sys.executable} -m pip install "
    for packages in (
        "nvidia-ml-py prometheus-client numpy soundfile soxr espeakng-loader",
        "prometheus-client python-multipart starlette uvicorn",
    ):
        assert pip + packages in done.stderr
