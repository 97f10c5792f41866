"""The HTTP gateway as a service: started by its socket, beside the daemon, with a user of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from .conftest import CONFIGURATION, configure
from .container import Container

pytestmark = pytest.mark.timeout(120, func_only=True)

UNIT, SOCKET = "glmtts-gateway.service", "glmtts-gateway.socket"
KEYS = "/etc/glmtts/api_keys.toml"

#: Asks for speech over HTTP, and prints the status and how the body begins.
ASKS = """
import json, sys, urllib.error, urllib.request
key, path = sys.argv[1:]
body = json.dumps({"input": "Hello.", "response_format": "wav"}).encode() if path.endswith("speech") else None
request = urllib.request.Request("http://127.0.0.1:8080" + path, body, {"Authorization": "Bearer " + key})
try:
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(answer.status, answer.read()[:4].decode())
except urllib.error.HTTPError as error:
    print(error.code, json.loads(error.read())["error"]["code"])
"""


@pytest.fixture(scope="module")
def gateway(container: Container) -> Iterator[Container]:
    """The container with both services in place, and the gateway's address listening."""
    container.run("glmttsctl", "install-service", "--yes")
    told = container.run("glmttsctl", "install-service", "--gateway", "--yes").stderr
    assert f"enable --now {SOCKET} {UNIT}" in told
    configure(container, CONFIGURATION + f'[gateway]\napi_keys = "{KEYS}"\n')
    yield container
    print(container.journal(UNIT)[-10_000:])
    container.run("glmttsctl", "uninstall-service", "--gateway", "--yes", timeout=60)
    container.run("systemctl", "stop", "glmtts.socket", "glmtts.service", timeout=60)
    container.run("rm", "-f", KEYS)
    container.run("systemctl", "reset-failed", check=False)


def asks(gateway: Container, key: str, path: str = "/v1/audio/speech") -> str:
    return gateway.run("python3", "-", key, path, input=ASKS, timeout=60).stdout.strip()


def test_a_gateway_is_started_by_its_first_visitor_and_outlives_kills_and_restarts(gateway: Container) -> None:
    key = gateway.run("glmttsctl", "--quiet", "apikey", "new", "anna").stdout.strip()
    gateway.run("systemctl", "start", SOCKET)
    assert gateway.show("ActiveState", UNIT) == "inactive"
    # The visitor waits for both: the gateway wants the daemon.
    assert asks(gateway, key) == "200 RIFF"
    assert gateway.show("ActiveState", UNIT) == "active" and gateway.show("User", UNIT) == "glmtts-gateway"
    uid = gateway.run("id", "-u", "glmtts-gateway").stdout.strip()
    gateway.until_logged(f"client=uid:{uid}/anna")

    # A new key, by a reload; a reload with a mistake in the file fails, and the old keys stay.
    pid = gateway.show("MainPID", UNIT)
    new = gateway.run("glmttsctl", "--quiet", "apikey", "new", "ben").stdout.strip()
    gateway.run("systemctl", "reload", UNIT)
    assert asks(gateway, new) == "200 RIFF" and asks(gateway, "glm-wrong") == "401 invalid_api_key"
    good = gateway.run("cat", KEYS).stdout
    gateway.run("sh", "-c", f"echo '[[kye]]' >> {KEYS}")
    assert gateway.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert asks(gateway, new) == "200 RIFF" and gateway.show("MainPID", UNIT) == pid
    gateway.run("sh", "-c", f"cat > {KEYS}", input=good)

    # The daemon is restarted beneath it, by systemd or by a kill.
    gateway.run("systemctl", "restart", "glmtts.service", timeout=60)
    assert asks(gateway, key) == "200 RIFF" and gateway.show("MainPID", UNIT) == pid
    gateway.kill(gateway.daemon, "KILL")
    gateway.until(lambda: asks(gateway, key) == "200 RIFF", "the daemon is back")

    # Killed, and frozen, it comes back; its visitors wait.
    gateway.kill(int(pid), "KILL")
    assert asks(gateway, key) == "200 RIFF" and gateway.show("MainPID", UNIT) not in ("0", pid)
    gateway.run("systemctl", "stop", SOCKET, UNIT, timeout=60)
    assert gateway.show("Result", UNIT) == "success" and gateway.processes(UNIT) == {}


def test_the_doctor_names_what_keeps_it_from_serving(gateway: Container) -> None:
    def wrong() -> dict[str, str]:
        told = json.loads(gateway.run("glmttsctl", "doctor", "--json", check=False, timeout=60).stdout)
        found = {one["name"]: one["seen"] for one in told["checks"] if one["state"] == "wrong"}
        return {name: seen for name, seen in found.items() if name.startswith("gateway")}

    gateway.run("glmttsctl", "--quiet", "apikey", "new", "doctor")
    gateway.run("systemctl", "restart", SOCKET, UNIT, timeout=60)
    assert wrong() == {}
    gateway.run("chmod", "600", KEYS)
    gateway.run("chown", "root:root", KEYS)
    assert "the user glmtts-gateway may not read it" in wrong()["gateway's file of keys"]
    gateway.run("mv", KEYS, f"{KEYS}.away")
    assert f"there is no file {KEYS}" in wrong()["gateway's file of keys"]
    gateway.run("systemctl", "restart", UNIT, check=False, timeout=60)
    assert "has failed (exit-code, exit status 78)" in wrong()["gateway's service"]
    gateway.run("systemctl", "reset-failed", check=False)
    gateway.run("mv", f"{KEYS}.away", KEYS)
    gateway.run("chmod", "640", KEYS)
    gateway.run("chown", "root:glmtts-gateway", KEYS)

    configure(gateway, CONFIGURATION + f'gateways = []\n[gateway]\napi_keys = "{KEYS}"\n')
    gateway.run("systemctl", "restart", "glmtts.service", SOCKET, UNIT, timeout=60)
    assert set(wrong()) == {"gateway's user", "gateway's address"}
    configure(gateway, CONFIGURATION + f'[gateway]\napi_keys = "{KEYS}"\n')
    gateway.run("systemctl", "restart", "glmtts.service", timeout=60)
    assert wrong() == {}
    gateway.run("systemctl", "stop", SOCKET, UNIT, timeout=60)


def test_its_units_are_right_and_closed(gateway: Container) -> None:
    said = gateway.run("systemd-analyze", "verify", "--man=no", UNIT, SOCKET)
    assert (said.stdout, said.stderr) == ("", "")
    exposure = gateway.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    found = re.search(rf"Overall exposure level for {UNIT}: ([\d.]+)", exposure)
    assert found and float(found[1]) <= 1.5, exposure[-2_000:]
    print("exposure", found[1])
    told = json.loads(gateway.run("glmttsctl", "uninstall-service", "--gateway", "--dry-run", "--json").stdout)
    assert "/etc/glmtts/glmtts.toml" not in {entry["file"] for entry in told["files"] if entry["what"] == "removed"}


def test_an_address_for_other_machines_takes_keys(gateway: Container) -> None:
    configure(gateway, CONFIGURATION)
    folder = f"/run/systemd/system/{SOCKET}.d"
    gateway.run("mkdir", "-p", folder)
    gateway.run("tee", f"{folder}/test.conf", input="[Socket]\nListenStream=\nListenStream=0.0.0.0:8080\n")
    gateway.run("systemctl", "daemon-reload")
    assert gateway.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert gateway.show("ExecMainStatus", UNIT) == "78"
    assert "0.0.0.0:8080 is open to other machines" in gateway.journal(UNIT)
    gateway.run("rm", "-r", folder)
    gateway.run("systemctl", "daemon-reload")
