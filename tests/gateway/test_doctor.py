"""``glmttsctl doctor`` on the gateway: what an operator needs at 3 am, by the part at fault."""

from __future__ import annotations

import pwd
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from glmtts.gateway import doctor
from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey

Found = Callable[..., dict[str, tuple[str, str, str]]]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """Each check's state, words and remedy, on a machine where the gateway is a service, by its name."""
    monkeypatch.setenv("GLMTTS_ENDPOINT", f"ipc://{tmp_path}/glmtts.sock")
    monkeypatch.setattr(doctor, "_user", lambda: pwd.struct_passwd(("glmtts-gateway", "x", 4_711, 0, "", "/", "/")))
    # As root sees it; the folders of tests are closed to others.
    monkeypatch.setattr(doctor, "_may", lambda _user, _test, path: bool(Path(path).stat().st_mode & 0o004))

    def examine(text: str, listen: str = "127.0.0.1:1 (Stream)", **states: str) -> dict[str, tuple[str, str, str]]:
        service = {"Id": "glmtts-gateway.service", "LoadState": "loaded", "ActiveState": "inactive"} | states
        listener = {"ActiveState": "active", "Listen": listen}
        units = {"glmtts-gateway.service": service, "glmtts-gateway.socket": listener}
        monkeypatch.setattr(doctor, "_units", lambda: units)
        file = tmp_path / "c.toml"
        file.write_text(text)
        return {one["name"]: (one["state"], one["seen"], one["mend"]) for one in doctor.examine(file)}

    return examine


def test_the_file_of_keys_has_to_be_there_with_a_key_that_the_service_may_read(found: Found, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    text = f'[gateway]\napi_keys = "{keys}"\n'
    state, seen, fix = found(text)["gateway's file of keys"]
    assert state == "wrong" and seen == f"there is no file {keys}" and f"apikey new NAME --file {keys}" in fix
    keys.write_text("")
    assert found(text)["gateway's file of keys"][:2] == ("wrong", f"{keys} has no key")
    keys.write_text(api_keys.entry(ApiKey(name="anna", sha256="0" * 64)))
    assert found(text)["gateway's file of keys"][:2] == ("ok", f"{keys}: 1 key")
    keys.chmod(0o600)
    state, seen, fix = found(text)["gateway's file of keys"]
    assert state == "wrong" and "the user glmtts-gateway may not read it" in seen and "chmod 640" in fix


def test_the_daemon_has_to_know_the_user_as_a_gateway(found: Found) -> None:
    assert found("[gateway]\n")["gateway's user"][0] == "ok"
    state, seen, fix = found('[limits]\ngateways = ["www-data"]\n')["gateway's user"]
    assert state == "wrong" and "not in [limits] gateways" in seen and "glmttsctl reload" in fix
    assert found('[limits]\ngateways = ["4711"]\n')["gateway's user"][0] == "ok"


def test_a_mistake_in_its_section_an_open_address_and_a_failed_unit_are_named(found: Found) -> None:
    assert found("[gateway]\nbody_mib = 0\n")["gateway's configuration"][0] == "wrong"
    state, seen, _ = found("", listen="0.0.0.0:8080 (Stream)")["gateway's address"]
    assert state == "wrong" and "gateway.api_keys" in seen
    state, seen, fix = found("", ActiveState="failed", Result="exit-code", ExecMainStatus="78")["gateway's service"]
    assert state == "wrong" and "exit status 78" in seen and "journalctl -u glmtts-gateway" in fix
    assert found("")["gateway's service"] == ("ok", "starts with its first visitor", "")


def test_another_program_at_its_address_is_told_from_a_gateway(found: Found) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.recv(1_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        listen = f"127.0.0.1:{other.getsockname()[1]} (Stream)"
        state, seen, fix = found("", listen, ActiveState="active")["gateway's address"]
        thread.join()
    assert state == "wrong" and "another program has it" in seen and "ss -ltnp" in fix
    assert found("", listen, ActiveState="active")["gateway's address"][1].endswith("no gateway runs")


def test_a_machine_without_a_gateway_has_no_checks_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, dict[str, str]] = {"glmtts-gateway.service": {}, "glmtts-gateway.socket": {}}
    monkeypatch.setattr(doctor, "_units", lambda: nothing)
    file = tmp_path / "c.toml"
    file.write_text("[engine]\n")
    assert doctor.examine(file) == doctor.examine(None) == []
