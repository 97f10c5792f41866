"""Who a request belongs to: by key, by the user that a key names, by an address that can't be forged."""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from glmtts.gateway.customers import Customers, _name_of
from glmtts.gateway.errors import HttpError
from glmtts.gateway.listening import parse_listen
from glmtts.gateway.settings import Settings, SettingsError
from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey, ApiKeyProblem
from glmtts.protocol.requests import MAX_ON_BEHALF_OF


def request(peer: str | None = "192.0.2.1", **headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": (peer, 1) if peer else None})


def keys_file(folder: Path, **more: Any) -> tuple[Path, str]:
    """A file with one key, of alice; and the key."""
    key = api_keys.new_key()
    file = folder / "keys.toml"
    file.write_text(api_keys.entry(ApiKey(name="alice", sha256=api_keys.digest(key), **more)))
    return file, key


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "name"),
    [
        ("192.0.2.1", "", [], "ip:192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", [], "ip:192.0.2.1"),
        ("10.0.0.2", "203.0.113.9", ["10.0.0.0/8"], "ip:203.0.113.9"),
        # The visitor has sent a header of its own, to which the proxy has added the address that it saw.
        ("10.0.0.2", "1.2.3.4, 203.0.113.9", ["10.0.0.0/8"], "ip:203.0.113.9"),
        ("10.0.0.2", "1.2.3.4, 203.0.113.9, 10.0.0.3", ["10.0.0.0/8"], "ip:203.0.113.9"),
        ("10.0.0.2", "nonsense", ["10.0.0.0/8"], "ip:local"),
        ("2001:db8::1:2", "", [], "ip:2001:db8::"),
        ("::ffff:192.0.2.1", "", [], "ip:192.0.2.1"),
        (None, "203.0.113.9", [], "ip:local"),
        (None, "203.0.113.9", ["unix"], "ip:203.0.113.9"),
    ],
)
def test_a_visitor_is_known_by_an_address_that_it_can_not_choose(
    peer: str | None, forwarded: str, proxies: list[str], name: str
) -> None:
    headers = {"x_forwarded_for": forwarded} if forwarded else {}
    customers = Customers(Settings(trusted_proxies=proxies))
    assert customers.of(request(peer, **headers)).name == name


def test_a_key_is_a_customer_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    file, key = keys_file(tmp_path, priorities=("batch",))
    customers = Customers(Settings(api_keys=str(file)))
    alice = customers.of(request(authorization=f"Bearer {key}"))
    assert (alice.name, alice.priorities) == ("alice", ("batch",))
    assert customers.of(request(x_api_key=key)).name == "alice"
    for headers in ({}, {"authorization": f"Bearer {key}x"}, {"authorization": "Basic eDp5"}):
        with pytest.raises(HttpError) as refused:
            customers.of(request(**headers))
        assert refused.value.status == 401


def test_a_file_of_keys_that_every_user_may_write_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, _ = keys_file(tmp_path)
    file.chmod(0o640)
    Customers(Settings(api_keys=str(file)))
    assert not caplog.messages
    file.chmod(0o666)
    Customers(Settings(api_keys=str(file)))
    assert "chmod o-w" in caplog.text


def test_without_keys_a_key_that_a_program_sends_anyway_does_no_harm() -> None:
    assert Customers(Settings()).of(request(authorization="Bearer sk-none")).name == "ip:192.0.2.1"


def test_a_front_end_names_its_user_only_with_a_key_that_may(tmp_path: Path) -> None:
    for forwards, name in ((True, "alice/user 7"), (False, "alice")):
        file, key = keys_file(tmp_path, forwards_users=forwards)
        customers = Customers(Settings(api_keys=str(file)))
        headers = {"authorization": f"Bearer {key}"}
        assert customers.of(request(**headers, x_openwebui_user_id="user 7")).name == name
    file, key = keys_file(tmp_path, forwards_users=True)
    long = Customers(Settings(api_keys=str(file))).of(
        request(authorization=f"Bearer {key}", x_openwebui_user_id="u" * 500)
    )
    assert len(long.name) <= 128


def test_users_whose_names_differ_in_what_is_not_printable_are_two_customers(tmp_path: Path) -> None:
    file, key = keys_file(tmp_path, forwards_users=True)
    secret = tmp_path / "secret"
    secret.write_text("a secret of both sides")
    plain = Customers(Settings(api_keys=str(file)))
    signed = Customers(Settings(api_keys=str(file), openwebui_secret=str(secret)))

    def name(customers: Customers, **headers: str) -> str:
        return customers.of(request(authorization=f"Bearer {key}", **headers)).name

    for header in ("x_glmtts_user", "x_openwebui_user_id"):
        # As they come: bytes of UTF-8, each a character.
        raw = [user.encode().decode("latin-1") for user in ("丁", "万")]
        assert [name(plain, **{header: user}) for user in raw] == ["alice/丁", "alice/万"]
        assert name(plain, **{header: "a\x85"}) != name(plain, **{header: "a"})
    found = [
        name(signed, x_openwebui_user_jwt=token(secret.read_bytes(), sub=user)) for user in ("u1", "u1\u200b", "u\n1")
    ]
    assert len(set(found)) == 3 and found[0] == "alice/u1" and all(map(str.isprintable, found))


users = st.text(max_size=3).map(str.encode) | st.binary(max_size=3) | st.integers(100, 140).map(lambda n: b"u" * n)


@given(users, users)
def test_two_users_are_never_one_customer(first: bytes, second: bytes) -> None:
    names = [_name_of("alice", user) for user in (first, second)]
    assert (names[0] == names[1]) == (first == second)
    for name in names:
        assert name.startswith("alice/") and name.isprintable() and len(name) <= MAX_ON_BEHALF_OF
        # A user may call itself what another one's hash is.
        assert first == name.removeprefix("alice/").encode() or _name_of("alice", name[6:].encode()) != names[0]


def token(secret: bytes, head: object = None, **claims: object) -> str:
    """A token as Open WebUI makes it."""
    values = {"sub": "u1", "iss": "open-webui", "iat": time.time(), "exp": time.time() + 300} | claims
    parts = [json.dumps(part).encode() for part in (head or {"alg": "HS256", "typ": "JWT"}, values)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return f"{signed.decode()}.{base64.urlsafe_b64encode(hmac.digest(secret, signed, 'sha256')).rstrip(b'=').decode()}"


def test_the_user_of_open_webui_is_believed_only_with_its_signature(tmp_path: Path) -> None:
    file, key = keys_file(tmp_path, forwards_users=True)
    secret = tmp_path / "secret"
    secret.write_text("a secret of both sides\n")
    customers = Customers(Settings(api_keys=str(file), openwebui_secret=str(secret)))
    right = secret.read_bytes().strip()

    def name(**headers: str) -> str:
        return customers.of(request(authorization=f"Bearer {key}", **headers)).name

    assert name(x_openwebui_user_jwt=token(right)) == "alice/u1"
    assert name(x_openwebui_user_id="u2") == "alice"
    forged = [
        *("", "a.b.c", "é.é.é", token(b"another secret"), token(right, exp=1.0), token(right, exp=None)),
        *(token(right, {"alg": "none"}), token(right)[:-2], token(right, sub=""), token(right, sub=None)),
        token(right).replace(".", ".eyJzdWIiOiJ2IiwiZXhwIjo5OTk5OTk5OTk5fQ.", 1),
    ]
    for wrong in forged:
        with pytest.raises(HttpError, match="openwebui_secret"):
            name(x_openwebui_user_jwt=wrong)
    # Without the secret the token says nothing.
    plain = Customers(Settings(api_keys=str(file)))
    assert plain.of(request(authorization=f"Bearer {key}", x_openwebui_user_jwt=token(right))).name == "alice"
    secret.write_text("short")
    with pytest.raises(SettingsError, match="guessed"):
        Customers(Settings(openwebui_secret=str(secret)))


def test_a_changed_file_of_keys_is_read_and_a_broken_one_locks_no_customer_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, first = keys_file(tmp_path)
    customers = Customers(Settings(api_keys=str(file)))
    second = api_keys.new_key()
    with file.open("a") as lines:
        lines.write(api_keys.entry(ApiKey(name="bob", sha256=api_keys.digest(second))))
    os.utime(file, ns=(1, 1))
    assert customers.of(request(authorization=f"Bearer {second}")).name == "bob"
    file.write_text("[[key]]\nname = 3\n")
    assert customers.of(request(authorization=f"Bearer {first}")).name == "alice"
    caplog.clear()
    kept = file.rename(tmp_path / "kept")
    for _ in range(3):
        assert customers.of(request(authorization=f"Bearer {first}")).name == "alice"
    assert len(caplog.messages) == 1 and "stay in force" in caplog.text
    kept.write_text(api_keys.entry(ApiKey(name="carol", sha256=api_keys.digest(second))))
    kept.rename(file)
    assert customers.of(request(authorization=f"Bearer {second}")).name == "carol"


@pytest.mark.parametrize(
    "text", ["no toml", "[[key]]\nname = 'a/b'\nsha256 = '0'", "keys = []", "[[key]]\nname = 'a'\nsha256 = 'zz'"]
)
def test_a_wrong_file_of_keys_is_refused(text: str) -> None:
    with pytest.raises(ApiKeyProblem):
        api_keys.parse(text)


def test_two_keys_of_one_name_are_refused() -> None:
    entry = api_keys.entry(ApiKey(name="alice", sha256="0" * 64))
    with pytest.raises(ApiKeyProblem, match="twice"):
        api_keys.parse(entry + entry)


def test_the_packaged_configuration_has_every_key_with_its_default() -> None:
    file = Path(__file__).parents[2] / "etc" / "glmtts.toml"
    section = tomllib.loads(file.read_text())["gateway"]
    assert msgspec.convert(section, Settings) == Settings()
    assert set(section) == set(Settings.__struct_fields__)


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [("127.0.0.1:0", True), ("[::1]:80", True), ("localhost:80", True), ("/run/g.sock", True), ("0.0.0.0:80", False)],
)
def test_which_addresses_are_this_machine_s_alone(listen: str, loopback: bool) -> None:
    assert parse_listen(listen).is_loopback is loopback
