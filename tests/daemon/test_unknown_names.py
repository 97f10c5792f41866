"""Users and keys that the configuration names but that do not exist get a warning, and no others do."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from glmtts.daemon import config
from glmtts.daemon.config import names
from glmtts.daemon.config.tcp_access import Access, Address
from glmtts.daemon.core.settings import Settings

ME = pwd.getpwuid(os.geteuid()).pw_name


def unknown(text: str, *keys: str) -> list[str]:
    access = Access(Address("127.0.0.1", 1), "x", {str(n): name for n, name in enumerate(keys)}, Path("/k/authorised"))
    return config.unknown_names(config.parse(text), access if keys else None)


def test_existing_users_uids_keys_and_customers_are_known() -> None:
    text = f"""
        [limits]
        gateways = ["{ME}", "4711", "key:web"]
        [limits.clients.{ME}]
        [limits.clients."{ME}/anna"]
        [limits.clients."key:web/any customer"]
        [limits.clients.4711]
        [queue.classes.vip]
        users = ["root", "{ME}"]
    """
    assert unknown(text, "web") == []
    assert config.names_in(Settings()) == [], "nothing is looked up where no client is named"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[limits]\ngateways = ["nosuchuser"]', "limits.gateways: this machine has no user 'nosuchuser'"),
        ("[limits.clients.nosuch]", "limits.clients.nosuch: this machine has no user 'nosuch'"),
        (
            '[limits]\ngateways=["1"]\n[limits.clients."nosuch/a"]',
            'limits.clients."nosuch/a": this machine has no user',
        ),
        ('[queue.classes.vip]\nusers = ["nosuch"]', "queue.classes.vip.users: this machine has no user 'nosuch'"),
        ('[limits]\ngateways = ["alice-laptop"]', 'a client over TCP is written "key:alice-laptop"'),
        ('[limits]\ngateways = ["key:alice-lapto"]', 'did you mean "key:alice-laptop"?'),
        ('[limits]\ngateways = ["key:zzz"]', "no key in /k/authorised has the name 'zzz'"),
    ],
)
def test_an_unknown_name_is_reported_with_its_key(text: str, problem: str) -> None:
    (found,) = unknown(text, "alice-laptop")
    assert problem in found


def test_a_client_key_without_a_listener_is_unknown() -> None:
    assert "tcp.listen is empty" in unknown('[limits]\ngateways = ["key:web"]')[0]


def test_a_slow_directory_is_not_asked_name_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_LIMIT_S", -1.0)
    found = unknown('[limits]\ngateways = ["a1", "a2", "a3"]')
    assert len(found) == 1 and "not looked up" in found[0]


def test_a_check_says_good_and_warns(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[limits]\ngateways = ["nosuchuser"]\n[limits.clients.nosuch]\n')
    command = [sys.executable, "-m", "glmtts.daemon.config", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{file}: good\n")
    assert done.stderr.count(f"{file}: warning: ") == 2 and "'nosuchuser'" in done.stderr
