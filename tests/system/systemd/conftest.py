"""One container for all tests here, with the built wheel installed in it as a user would; and a fresh service for each.

Where no container can be booted the tests are skipped, and say why. On CI they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import image
from .container import CannotBootError, Container

#: What differs from the defaults, so that no test waits for long or is limited by another test's jobs.
CONFIGURATION = """
[workers]
gpus = "none"
[limits]
rate = ""
"""


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A booted container; commands of the wheel are in /opt/glmtts/bin."""
    try:
        image.requirements("systemd-nspawn", "nsenter")
        system, wheels = image.system(), image.wheels()
        booted = Container(system, Path(tmp_path_factory.mktemp("boot")) / "log", read_only={wheels: "/wheels"})
    except (image.NoImageError, CannotBootError) as error:
        if os.environ.get("CI"):
            pytest.fail(f"no container, and this is CI: {error}")
        pytest.skip(f"systemd can't be tested here: {error}")
    try:
        booted.run("python3", "-m", "venv", "/opt/glmtts", timeout=120)
        pip = ["/opt/glmtts/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels"]
        booted.run(*pip, "glmtts-supervisor[espeak,gateway]", timeout=180)
        for user in ("alice", "stranger"):
            booted.run("useradd", user)
        yield booted
    finally:
        booted.close()


@pytest.fixture
def installed(container: Container) -> Container:
    """The container with the service in place."""
    if container.show("LoadState") != "loaded":
        container.run("glmttsctl", "install-service", "--yes")
        container.run("usermod", "-aG", "glmtts", "alice")
        container.run("systemctl", "enable", "--quiet", "glmtts.service")
    return container


@pytest.fixture
def service(installed: Container) -> Iterator[Container]:
    """The container with the service just started, on an empty state; its journal begins here."""
    stop(installed)
    installed.run("sh", "-c", "rm -rf /var/lib/glmtts /run/systemd/system/glmtts.service.d")
    configure(installed, CONFIGURATION)
    installed.run("systemctl", "daemon-reload")
    installed.forget()
    installed.run("systemctl", "start", "glmtts.service")
    yield installed
    print(installed.journal()[-20_000:])
    stop(installed)


def stop(container: Container) -> None:
    """The service and its socket are off, whatever became of them."""
    container.run("systemctl", "stop", "glmtts.socket", "glmtts.service", timeout=60)
    container.run("systemctl", "reset-failed", check=False)


def configure(container: Container, text: str) -> None:
    """Write the daemon's configuration."""
    container.run("tee", "/etc/glmtts/glmtts.toml", input=text)
