"""Where the daemon listens by TCP, with which keys: never without encryption where others can connect."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtts.daemon import config
from glmtts.daemon.config import ConfigError, tcp_access
from glmtts.daemon.config.tcp_access import Address
from glmtts.daemon.core.settings import TcpSettings
from glmtts.protocol import keys
from glmtts.protocol.keys import KeyProblem


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:5555", Address("127.0.0.1", 5555), True),
        ("tcp://0.0.0.0:5555", Address("0.0.0.0", 5555), False),
        ("localhost:0", Address("127.0.0.1", 0), True),
        ("[::1]:5555", Address("::1", 5555), True),
        ("tcp://[::]:5555", Address("::", 5555), False),
        ("10.1.2.3:65535", Address("10.1.2.3", 65535), False),
        ("[::ffff:10.0.0.1]:1", Address("::ffff:a00:1", 1), False),
    ],
)
def test_an_address_is_read_as_it_is_written(text: str, address: Address, loopback: bool) -> None:
    found = tcp_access.parse_listen(text)
    assert found == address and found.is_loopback == loopback
    assert tcp_access.parse_listen(found.endpoint) == found


@pytest.mark.parametrize(
    "text",
    ["5555", "::1:5555", "0.0.0.0", "0.0.0.0:65536", "example.org:5555", "*:5555", "udp://1.2.3.4:5", "[x]:1", " "],
)
def test_an_invalid_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        tcp_access.parse_listen(text)
    with pytest.raises(ConfigError, match=r"tcp\.listen"):
        config.parse(f'[tcp]\nlisten = "{text}"')


def load(tmp_path: Path, **tcp: str) -> tcp_access.Access | None:
    return tcp_access.load(TcpSettings(**tcp), tmp_path)


def made(path: Path) -> str:
    public, secret = keys.generate()
    keys.write(path, secret, mode=0o600, replace=True)
    return public


def test_nothing_is_read_where_nothing_listens(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("not even a folder")
    assert load(tmp_path) is None


def test_without_a_key_only_this_machine_can_connect(tmp_path: Path) -> None:
    access = load(tmp_path, listen="127.0.0.1:5555")
    assert access and access.secret is None
    for listen in ("0.0.0.0:5555", "[::]:5555", "192.168.1.1:5555"):
        with pytest.raises(KeyProblem, match="glmttsctl key server"):
            load(tmp_path, listen=listen)


def test_an_existing_key_is_used_on_every_address(tmp_path: Path) -> None:
    made(tmp_path / "keys" / "server.key")
    for listen in ("127.0.0.1:5555", "0.0.0.0:5555"):
        access = load(tmp_path, listen=listen)
        assert access and access.secret and access.names == {}


@pytest.mark.parametrize("damage", ["readable", "empty", "dangling", "folder"])
def test_a_key_that_can_t_be_used_never_means_no_encryption(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "keys" / "server.key"
    made(path)
    if damage == "readable":
        path.chmod(0o644)
    elif damage == "empty":
        path.write_text("")
    else:
        path.unlink()
        path.symlink_to(tmp_path / "nowhere" if damage == "dangling" else tmp_path)
    with pytest.raises(KeyProblem, match=r"tcp\.server_key: .*server\.key"):
        load(tmp_path, listen="127.0.0.1:5555")


def test_named_files_must_exist(tmp_path: Path) -> None:
    with pytest.raises(KeyProblem) as caught:
        load(tmp_path, listen="127.0.0.1:1", server_key=str(tmp_path / "s"), authorised_keys=str(tmp_path / "a"))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"tcp.server_key: {tmp_path}/s") and "key server" in first
    assert second.startswith(f"tcp.authorised_keys: {tmp_path}/a") and "key add" in second


def test_a_check_of_the_configuration_reads_the_keys_as_the_daemon_does(tmp_path: Path) -> None:
    file = tmp_path / "glmtts.toml"
    file.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n[tcp]\nlisten = "0.0.0.0:5555"\n')
    with pytest.raises(ConfigError, match=f"{file}: tcp.server_key"):
        config.read(file)
    made(tmp_path / "keys" / "server.key")
    (tmp_path / "keys" / "authorised_keys").write_text("nonsense\n")
    with pytest.raises(ConfigError, match=f"{file}: tcp.authorised_keys: {tmp_path}/keys/authorised_keys:1: "):
        config.read(file)
    public, _ = keys.generate()
    (tmp_path / "keys" / "authorised_keys").write_text(f"{public} alice\n")
    access = config.read(file).tcp
    assert access and access.names == {public: "alice"}


@pytest.mark.parametrize("key", ["limits.gateways", "queue.classes.vip.users"])
def test_a_key_is_named_by_key_and_its_name(key: str) -> None:
    section, _, name = key.rpartition(".")
    config.parse(f'[{section}]\n{name} = ["key:alice-laptop", "anna", "1000"]\n')
    for bad in ("key:", "key:-x", "key:a b", "curve:abc", "tcp:127.0.0.1"):
        with pytest.raises(ConfigError, match="key: and the name"):
            config.parse(f'[{section}]\n{name} = ["{bad}"]\n')


@pytest.mark.parametrize("key", ["tcp.listen", "metrics.listen"])
@pytest.mark.parametrize("port", ["65536", "99999", "5555555"])
def test_a_port_out_of_range_is_refused(key: str, port: str) -> None:
    section, _, name = key.rpartition(".")
    with pytest.raises(ConfigError, match=rf"{key}: port {port} .* out of range.* 65535"):
        config.parse(f'[{section}]\n{name} = "0.0.0.0:{port}"')
