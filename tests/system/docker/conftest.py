"""The image, built by a real Docker engine as users build it, and run as the compose file runs it.

Its two base images can't be had without their registry: a bookworm with the packages that the Dockerfile installs
stands in for both, so nothing comes from a network. Where there is no engine the tests are skipped, and say why.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .. import image
from .engine import Contained, Engine, NoEngineError

DOCKER = image.ROOT / "deploy" / "docker"
IMAGE = "glmtts-supervisor"

#: Stands for an image with a pip, and for one without; packages are found in a folder.
STAND_INS = """
FROM bookworm AS cuda
RUN rm -f /etc/apt/sources.list
COPY . /packages
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/packages
FROM cuda AS python
RUN python3 -m venv /usr/local/python
ENV PATH=/usr/local/python/bin:$PATH
"""


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine that has the image."""
    try:
        image.requirements("dockerd", "docker", "setpriv")
        system, wheels = image.system(), image.wheels()
        started = Engine()
    except (image.NoImageError, NoEngineError) as error:
        pytest.skip(f"the image can't be built here: {error}")
    try:
        _make_stand_ins(started, system, wheels)
        started.run(
            "build", "--network=none", f"--file={DOCKER / 'Dockerfile'}", f"--tag={IMAGE}", str(image.ROOT), timeout=180
        )
        yield started
    finally:
        started.close()


def _make_stand_ins(engine: Engine, system: Path, wheels: Path) -> None:
    with subprocess.Popen(["tar", "-C", str(system), "-c", "."], stdout=subprocess.PIPE) as tar:
        engine.run("import", "-", "bookworm", stdin=tar.stdout, timeout=120)
    runs_on, builds_on = reversed(re.findall(r"^FROM (\S+)", (DOCKER / "Dockerfile").read_text(), re.M))
    for target, tag in (("cuda", runs_on), ("python", builds_on)):
        command = ["build", "--network=none", "--file=-", f"--target={target}", f"--tag={tag}", str(wheels)]
        engine.run(*command, input=STAND_INS, timeout=120)


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Iterator[Callable[..., Contained]]:
    """Runs a service of the compose file with its restrictions, and a configuration of the test's."""
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    containers: list[Contained] = []

    def run(*options: str, configuration: str = "", service: str = "glmttsd") -> Contained:
        described = services[service]
        restricted = _restricted(described)
        if configuration:
            file = tmp_path / f"{len(containers)}.toml"
            file.write_text(configuration)
            file.chmod(0o644)
            options += (f"--volume={file}:/etc/glmtts/glmtts.toml:ro",)
        command = tuple(described.get("command", ()))
        containers.append(engine.start("--network=none", *restricted, *options, image=IMAGE, command=command))
        return containers[-1]

    yield run
    for container in containers:
        print(container.log()[-10_000:])
        engine.run("rm", "--force", container.id)
    engine.run("volume", "rm", *_volumes(services["glmttsd"]))


def _restricted(service: dict[str, Any]) -> list[str]:
    """The options of `docker run` for a service of the compose file."""
    assert service["read_only"], "what it writes outside its volumes is not seen here else"
    options = ["--read-only"]
    options += [f"--shm-size={service['shm_size']}"] if "shm_size" in service else []
    options += [f"--user={service['user']}"] if "user" in service else []
    options += [f"--entrypoint={program}" for program in service.get("entrypoint", ())]
    options += [f"--tmpfs={folder}" for folder in service["tmpfs"]]
    options += [f"--cap-drop={capability}" for capability in service["cap_drop"]]
    options += [f"--security-opt={option}" for option in service["security_opt"]]
    options += [f"--volume={volume}" for volume in service["volumes"]]
    if check := service.get("healthcheck"):
        options.append(f"--health-cmd={shlex.join(check['test'][1:])}")
    return options


def _volumes(service: dict[str, list[str]]) -> list[str]:
    return [volume.split(":")[0] for volume in service["volumes"] if not volume.startswith((".", "/"))]
