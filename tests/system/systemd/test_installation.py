"""`glmttsctl install-service` and `uninstall-service` where systemd runs, with the built wheel."""

from __future__ import annotations

import json
import re

import pytest

from .conftest import CONFIGURATION
from .container import Container

pytestmark = pytest.mark.timeout(120, func_only=True)


def system_files(container: Container) -> set[str]:
    """Every file that an installation could have left; accounts are added to files that are there."""
    found = container.run("find", "/etc", "/usr", "/run/systemd/system", "/run/glmtts", "/run/glmtts-en", check=False)
    return {
        line for line in found.stdout.splitlines() if not re.fullmatch(r"/etc/(passwd|group|shadow|gshadow)-", line)
    }


@pytest.fixture
def bare(container: Container) -> Container:
    """The container without the service."""
    container.run("glmttsctl", "uninstall-service", "--yes", check=False)
    # A configuration that was changed is kept.
    container.run("rm", "-rf", "/etc/glmtts")
    return container


def test_a_machine_is_as_it_was_when_the_service_is_taken_away_again(bare: Container) -> None:
    before = system_files(bare)
    told = json.loads(bare.run("glmttsctl", "install-service", "--dry-run", "--json").stdout)
    assert system_files(bare) == before
    bare.run("glmttsctl", "install-service", "--yes")
    assert {entry["file"] for entry in told["files"]} <= system_files(bare) - before
    # Neither enabled nor started by itself.
    assert bare.show("ActiveState") == bare.show("ActiveState", "glmtts.socket") == "inactive"
    bare.run("systemctl", "enable", "--now", "--quiet", "glmtts.service")
    bare.run("glmttsctl", "say", "hello", "-o", "/tmp/a.wav")
    # Over a service that runs: nothing happens to it.
    daemon = bare.daemon
    bare.run("glmttsctl", "install-service", "--yes")
    assert bare.daemon == daemon != 0
    bare.run("glmttsctl", "uninstall-service", "--yes", timeout=60)
    assert system_files(bare) == before
    assert bare.show("LoadState") == "not-found" and bare.processes() == {}
    # What it has kept is not thrown away.
    assert "journal" in bare.run("ls", "/var/lib/glmtts").stdout
    bare.run("rm", "-r", "/var/lib/glmtts")


def test_only_root_may_change_the_services_of_the_machine(bare: Container) -> None:
    before = system_files(bare)
    refused = bare.run("glmttsctl", "install-service", "--yes", user="alice", check=False)
    assert refused.returncode == 1 and "Only root" in refused.stderr
    assert bare.run("glmttsctl", "install-service", "--dry-run", user="alice").stdout
    assert system_files(bare) == before


def test_two_instances_run_beside_each_other_and_go_one_by_one(bare: Container) -> None:
    before = system_files(bare)
    for name in ("en", "zh"):
        bare.run("glmttsctl", "install-service", "--yes", "--instance", name)
        bare.run("tee", f"/etc/glmtts/{name}.toml", input=CONFIGURATION)
        bare.run("systemctl", "enable", "--now", "--quiet", f"glmtts@{name}.service")
        bare.run("glmttsctl", "--endpoint", f"ipc:///run/glmtts-{name}/glmtts.sock", "say", "hello", "-o", "/tmp/a.wav")
    units = ["glmtts@en.service", "glmtts@en.socket"]
    said = bare.run("systemd-analyze", "verify", "--man=no", *units)
    assert (said.stdout, said.stderr) == ("", "")
    bare.run("systemctl", "reload", "glmtts@en.service")
    bare.run("glmttsctl", "uninstall-service", "--yes", "--instance", "en", timeout=60)
    assert bare.processes("glmtts@en.service") == {} and len(bare.processes("glmtts@zh.service")) == 3
    bare.run("glmttsctl", "--endpoint", "ipc:///run/glmtts-zh/glmtts.sock", "say", "hello", "-o", "/tmp/a.wav")
    bare.run("glmttsctl", "uninstall-service", "--yes", "--instance", "zh", timeout=60)
    # Their changed configurations are kept.
    assert system_files(bare) - before == {"/etc/glmtts", "/etc/glmtts/en.toml", "/etc/glmtts/zh.toml"}
    bare.run("rm", "-r", "/etc/glmtts", "/var/lib/glmtts-en", "/var/lib/glmtts-zh")
