"""``[gateway]``: each mistake is named by its key, with what is allowed, before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from glmtts.gateway.listening import bind, parse_listen
from glmtts.gateway.main import main


def check(folder: Path, capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> tuple[int, str]:
    """The exit status of ``--check``, and what it says of the file."""
    file = folder / "c.toml"
    file.write_text(text)
    status = main(["--check", "--config", str(file), *arguments])
    said = capsys.readouterr()
    return status, (said.out + said.err).replace(f"{file}: ", "").strip()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("listen = 8080", "gateway.listen: expected a string in quotes, got 8080"),
        ('listen = ":8080"', "gateway.listen: ':8080' is no address; use \"127.0.0.1:8080\""),
        ('listen = "speech.lan:80"', "is no address"),
        ('listen = "127.0.0.1:70000"', "is no address"),
        ('listen = "run/g.sock"', "is no address"),
        ('listen = "0.0.0.0:80"', "gateway.listen: 0.0.0.0:80 is open to other machines"),
        ('listen = "[::]:80"', "gateway.api_keys"),
        ('endpoint = "glmtts.sock"', 'gateway.endpoint: "glmtts.sock" is no endpoint; use "ipc:///run/'),
        ('api_keys = "keys.toml"', 'gateway.api_keys: "keys.toml" is relative'),
        ('api_keys = "/nonesuch/keys"', "gateway.api_keys: there is no file /nonesuch/keys; 'glmttsctl apikey new"),
        ('api_keys = "/tmp"', "gateway.api_keys: /tmp can't be read"),
        ('anonymous = "yes"', 'gateway.anonymous: expected true or false, got "yes"'),
        ("public_lists = 1", "gateway.public_lists: expected true or false, got 1"),
        ('cors_origins = "https://a"', 'gateway.cors_origins: expected a list, got "https://a"'),
        ('cors_origins = ["https://a/"]', 'gateway.cors_origins: "https://a/" is no origin'),
        ('cors_origins = ["*"]', "gateway.cors_origins"),
        ('trusted_proxies = ["nginx"]', 'gateway.trusted_proxies: "nginx" is no network; write addresses'),
        ('trusted_proxies = ["10.0.0.1/8"]', 'did you mean "10.0.0.0/8"?'),
        ("body_mib = 0", "gateway.body_mib: expected a whole number >= 1, got 0"),
        ("connections_per_address = 0", "gateway.connections_per_address: expected a whole number >= 1"),
        ("voices = { alloy = 3 }", "gateway.voices.alloy: expected a voice's name in quotes, got 3"),
        ("voices = []", "gateway.voices: expected a table, got a list"),
        ('api_key = ""', "gateway.api_key: unknown key; did you mean gateway.api_keys?"),
        ("x = 1", "gateway.x: unknown key; its keys are listen, "),
        ("listen =", "line 2, column 9: not TOML"),
    ],
)
def test_a_mistake_is_named_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    status, said = check(tmp_path, capsys, f"[gateway]\n{line}\n")
    assert status == 78 and says in said and "\n" not in said


def test_all_mistakes_are_told_at_once_and_a_good_file_where_it_leads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = check(tmp_path, capsys, '[gateway]\nbody_mib = 0\nanonymous = 1\ntrusted_proxies = ["a", "b"]\n')
    assert len(said.splitlines()) == 4
    status, said = check(tmp_path, capsys, "[gatway]\nbody_mib = 0\n")
    assert status == 78 and said == "gatway: unknown section; did you mean gateway?"
    status, said = check(tmp_path, capsys, "[gateway]\nanonymous = true\n", "--listen", "[::]:80")
    assert status == 0 and said.endswith("good; the gateway would serve at http://[::]:80")
    assert check(tmp_path, capsys, "", "--listen", "80")[1].startswith("--listen: '80' is no address")
    key = 'name = "a"\nsha256 = "no"\n'
    (tmp_path / "keys").write_text(f"[[key]]\n{key}")
    status, said = check(tmp_path, capsys, f'[gateway]\napi_keys = "{tmp_path}/keys"\n')
    assert status == 78 and f"gateway.api_keys: {tmp_path}/keys: " in said and "sha256" in said


def test_a_place_that_is_taken_is_named_and_a_socket_that_was_left_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--listen", f"127.0.0.1:{port}"]) == 69
    (line,) = capsys.readouterr().err.splitlines()
    assert f"another program has port {port}" in line and "--listen" in line
    path = tmp_path / "g.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert main(["--listen", str(path)]) == 69
        assert "another program listens at this socket" in capsys.readouterr().err and path.exists()
    for listened in bind(parse_listen(str(path))):
        listened.close()
    assert main(["--listen", str(tmp_path / "nonesuch" / "g.sock")]) == 69
    assert main(["--listen", "192.0.2.1:80", "--config", "/dev/null"]) == 78
