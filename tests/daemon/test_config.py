"""Configuration files: every mistake is reported at once, by file, key and the nearest valid name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.daemon import config
from glmtts.daemon.config import ConfigError, load, ranges
from glmtts.daemon.config.rules import combinations
from glmtts.daemon.core.settings import ClientLimits, Section, Settings, flat
from glmtts.protocol.toml_words import key_in_toml


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    return caught.value.problems


def problem(text: str) -> str:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


# --- the packaged file


def test_the_packaged_file_says_exactly_the_defaults() -> None:
    assert config.parse(config.packaged_default()) == Settings()


def test_the_packaged_file_has_every_key_in_order_and_one_line_of_why() -> None:
    section, found = "", []
    for line in config.packaged_default().splitlines():
        if match := re.fullmatch(r"\[([\w.]+)\]", line):
            section = match[1]
        elif match := re.fullmatch(r"# \[(limits\.clients)\.alice\]", line):
            found.append(match[1])  # an example: in TOML "clients = {}" and a section of it exclude each other
        elif match := re.fullmatch(r"(\w+) = (.*)", line):
            path = f"{section}.{match[1]}"
            found.append(path)
            if section == "gateway":
                found.pop()  # glmtts-gateway's; tests/gateway compares it
            if not section.startswith("queue.classes.") or section.endswith(".vip"):
                assert re.search(r" # \w", line), f"{path} has no line of why"
    assert sorted(found) == sorted(_in_order(Settings))
    assert [path for path in found if path != "limits.clients"] == [
        path for path in _in_order(Settings) if path != "limits.clients"
    ]


def test_the_example_of_a_clients_own_limits_can_be_uncommented() -> None:
    lines = config.packaged_default().splitlines()
    start = lines.index("# [limits.clients.alice]")
    end = next(n for n in range(start, len(lines)) if not lines[n].startswith("#"))
    lines[start:end] = [line.removeprefix("#").strip() for line in lines[start:end]]
    limits = config.parse("\n".join(lines)).limits
    own = ClientLimits(rate="60/minute", rate_batch="", max_jobs=4096, max_share=0.5, own_voices=50)
    assert limits.clients == {"alice": own}


def _in_order(section: type[Section], prefix: str = "") -> list[str]:
    """The keys as a file has them: a section's own before those of its subsections."""
    own: list[str] = []
    below: list[str] = []
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            below += _in_order(field.type, f"{prefix}{field.name}.")
        else:
            own.append(f"{prefix}{field.name}")
    return own + below


# --- valid


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("", "queue.max_waiting", 10),
        ("[queue]\nmax_waiting = 1", "queue.max_waiting", 1),
        ("[workers]\nmax = 1", "queue.interactive_workers", 1),
        (
            '[engine]\nname = "fault"\n[engine.fault]\nslots = 4\n[workers]\nmax = 1\n[queue]\ninteractive_workers = 2',
            "queue.interactive_workers",
            2,
        ),
        ("[queue.classes.vip]\nweight = 20", "queue.classes.vip.users", ["root"]),
        ('[engine]\nname = "fault"\n[engine.fault]\nstart = "slow"\nstart_s = 2', "engine.fault.start_s", 2.0),
    ],
)
def test_one_key_can_be_set_without_another(text: str, key: str, value: object) -> None:
    assert flat(config.parse(text))[key] == value


def test_set_keys_are_set_and_the_others_keep_their_defaults() -> None:
    settings = config.parse(
        '[workers]\ngpus = [0, 2]\nhang_timeout_s = 5\n[queue.classes.vip]\nusers = ["anna", "1000"]'
    )
    assert settings.workers.gpus == [0, 2]
    assert settings.workers.hang_timeout_s == 5.0
    assert settings.queue.classes.vip.users == ["anna", "1000"]
    assert settings.queue.classes.vip.weight == 16
    changed = {key for key, value in flat(settings).items() if value != flat(Settings())[key]}
    assert changed == {"workers.gpus", "workers.hang_timeout_s", "queue.classes.vip.users"}


def test_clients_have_limits_of_their_own_by_every_name_that_one_can_have() -> None:
    text = '[limits]\ngateways = ["web"]\n' + "".join(
        f"[limits.clients.{name}]\nmax_jobs = {number}\n"
        for number, name in enumerate(["alice", "1000", '"key:kiosk-1"', '"web/爱丽丝"', '"key:web/a"'], 1)
    )
    names = ["alice", "1000", "key:kiosk-1", "web/爱丽丝", "key:web/a"]
    own = config.parse(text).limits.clients
    assert own == {name: ClientLimits(max_jobs=number) for number, name in enumerate(names, 1)}
    assert config.parse('[limits.clients.a]\nrate = ""').limits.clients["a"].rate == "", "none at all, not the general"


# --- invalid


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("[limits]\nmax_waiting = 3", "limits.max_waiting", "queue.max_waiting"),
        ("[queue]\nmax_wating = 3", "queue.max_wating", "queue.max_waiting"),
        ("[workers.recycle]\nmax-jobs = 3", "workers.recycle.max-jobs", "workers.recycle.max_jobs"),
        ('log_level = "debug"', "log_level", "daemon.log_level"),
        ("[worker]\nper_gpu = 1", "worker", "workers"),
        ("[recycle]\nmax_jobs = 1", "recycle", "workers.recycle"),
        ("[queue]\nLIMITS = 1", "queue.LIMITS", "glmttsctl config default"),
        ("[audio]\noutput = 1", "audio.output", "audio.outputs"),
        ("[workers.restart]\nhang_timeout_s = 1", "workers.restart.hang_timeout_s", "workers.hang_timeout_s"),
        ("[limits.clients.alice]\nrat = '5/minute'", "limits.clients.alice.rat", "limits.clients.alice.rate?"),
        ('[limits.clients."key:a"]\nmax_job = 1', 'limits.clients."key:a".max_job', 'limits.clients."key:a".max_jobs?'),
        ("[limits.client.alice]\nrate = '5/minute'", "limits.client", "limits.clients"),
        ("[queue]\nmax_shares = 1", "queue.max_shares", "queue.max_share"),
        ("[queue]\nkeep_durable = 1", "queue.keep_durable", "queue.keep_durable_"),
        ("[qqq]\nzzz = 1", "qqq", "glmttsctl config default"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_right_one(text: str, key: str, hint: str) -> None:
    found = problem(text)
    assert found.startswith(f"{key}: unknown ")
    assert hint in found


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ('[queue]\nmax_waiting = "3"', "queue.max_waiting", 'a whole number, got "3"'),
        ("[queue]\nmax_waiting = 3.5", "queue.max_waiting", "a whole number, got 3.5"),
        ("[queue]\nmax_waiting = true", "queue.max_waiting", "a whole number, got true"),
        ("[queue]\nmax_waiting = -1", "queue.max_waiting", "from 0 to 1000000, got -1"),
        ("[workers]\nper_gpu = 257", "workers.per_gpu", "256"),
        ("[workers]\nmin = 257", "workers.min", "256"),
        ("[workers]\nmax = 257", "workers.max", "256"),
        ("[queue]\nmax_waiting = [1]", "queue.max_waiting", "got a list"),
        ("[queue]\nmax_waiting = 2026-01-01", "queue.max_waiting", "got a date or time"),
        ("[workers]\nper_gpu = 0", "workers.per_gpu", "from 1 to 256, got 0"),
        ("[workers]\nhang_timeout_s = nan", "workers.hang_timeout_s", "a number"),
        ("[workers]\nhang_timeout_s = inf", "workers.hang_timeout_s", "from 0.5 to 86400, got inf"),
        ("[workers]\nhang_timeout_s = 0", "workers.hang_timeout_s", "from 0.5 to 86400, got 0"),
        ('[workers]\ngpus = "some"', "workers.gpus", '"all", "none" or a list'),
        ("[workers]\ngpus = [-1]", "workers.gpus", '"all", "none" or a list'),
        ("[workers]\ngpus = 1", "workers.gpus", '"all", "none" or a list'),
        ("[daemon]\nsocket_mode = 660", "daemon.socket_mode", 'such as "0660"'),
        ('[daemon]\nsocket_mode = "rw"', "daemon.socket_mode", 'such as "0660"'),
        ('[daemon]\nsocket_mode = "0660\\n"', "daemon.socket_mode", 'such as "0660"'),
        ('[daemon]\nlog_level = "warn"', "daemon.log_level", 'did you mean "warning"?'),
        ('[audio]\ndefault_format = "Wave"', "audio.default_format", "pcm_f32le"),
        ("[limits]\ntext_chars = 100001", "limits.text_chars", "from 1 to 100000, got 100001"),
        ('[limits]\ngateways = ["a", 5]', "limits.gateways", "as item 2, got 5"),
        ('[limits]\ngateways = "anna"', "limits.gateways", "a list"),
        ("[limits]\nclients = 5", "limits.clients", "a table, got 5"),
        ("[limits.clients]\nrate = '5/minute'", "limits.clients.rate", "[limits.clients.NAME], with rate, rate_batch"),
        ("[limits.clients.alice]\nrate = 5", "limits.clients.alice.rate", "a string in quotes, got 5"),
        ("[limits.clients.alice]\nmax_jobs = 0", "limits.clients.alice.max_jobs", "from 1 to 1000000, got 0"),
        ("[limits.clients.alice]\nmax_share = 2", "limits.clients.alice.max_share", "from 0.001 to 1, got 2"),
        ("[queue]\nmax_share = 0", "queue.max_share", "from 0.001 to 1, got 0"),
        ('[metrics]\nlisten = "9464"', "metrics.listen", "an address and a port"),
        ('[metrics]\nlisten = "speech.example:9464"', "metrics.listen", "not an IP address"),
        ("[metrics]\nlisten = 9464", "metrics.listen", "a string in quotes, got 9464"),
        ("[alerts]\nerror_share = 10", "alerts.error_share", "from 0.001 to 1, got 10"),
        ("[alerts]\nfor_s = 0", "alerts.for_s", "from 0.1 to 86400, got 0"),
        ("[queue]\npreempt = 1", "queue.preempt", "true or false, got 1"),
        ("[queue]\ninteractive_workers = -1", "queue.interactive_workers", "from 0 to 256, got -1"),
        ("[queue]\nkeep_durable_s = 0", "queue.keep_durable_s", "from 1 to 316224000, got 0"),
        ("daemon = 5", "daemon", "expected a section, written [daemon]"),
        ("[[daemon]]\n", "daemon", "expected a section, written [daemon]"),
        ("[queue]\nmax_waiting = " + "9" * 4_000, "queue.max_waiting", "to 1000000, got a number beyond 64 bits"),
        ("[workers]\nhang_timeout_s = 1e300", "workers.hang_timeout_s", "to 86400, got 1e+300"),
    ],
)
def test_a_wrong_value_is_answered_with_the_expected_one(text: str, key: str, expected: str) -> None:
    found = problem(text)
    assert found.startswith(f"{key}: ")
    assert expected in found
    assert len(found) < 300


def numbers(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key with a number."""
    for field in msgspec.structs.fields(section):
        path = f"{prefix}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from numbers(field.type, f"{path}.")
        elif path == "limits.clients":
            yield from numbers(ClientLimits, "limits.clients.NAME.")
        elif {int, float} & {getattr(part, "__origin__", part) for part in (field.type, *get_args(field.type))}:
            yield path


def test_every_number_has_a_range_and_only_they_have() -> None:
    assert set(numbers(Settings)) == set(ranges.RANGES)
    assert all(
        ranges.RANGES[key].problem(value) == "" for key, value in flat(Settings()).items() if key in ranges.RANGES
    )


@pytest.mark.parametrize("key", sorted(ranges.RANGES))
def test_a_number_beyond_its_range_is_answered_with_the_range(key: str) -> None:
    allowed = ranges.RANGES[key]
    section, _, name = key.replace("NAME", "anna").rpartition(".")
    for value in ("nan", "inf", "-inf", "-1", "1e-300", "1e300", "9" * 40):
        if not allowed.least <= float(value) <= allowed.most:
            found = problem(f"[{section}]\n{name} = {value}")
            assert found.startswith(f"{section}.{name}: expected ") and " to " in found, found


def test_the_glmtts_engine_needs_its_checkout_and_the_message_names_the_page() -> None:
    assert "docs/glmtts.md" in problem('[engine]\nname = "glmtts"')
    assert "docs/glmtts.md" in problem('[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "/nonexistent"')
    good = config.parse('[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "/usr"\ndictionary = "/etc/passwd"')
    assert good.engine.glmtts.root == "/usr"


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("", "engine.server.command", "docs/server-engine.md"),
        ('url = "ftp://127.0.0.1:{port}"', "engine.server.command", "not set"),
        ('command = ["sh"]\nurl = "127.0.0.1:80"', "engine.server.url", "no address of HTTP"),
        ('command = ["sh"]\nurl = "http://127.0.0.1:99999"', "engine.server.url", "no address"),
        ('command = ["sh"]\nurl = "http://me:key@127.0.0.1"', "engine.server.url", "engine.server.api_key_file"),
        ('command = ["sh"]\nurl = "http://127.0.0.1/{port}"', "engine.server.url", "another place"),
        ('command = ["sh"]\nurl = "http://10.0.0.1:80"', "engine.server.url", "another machine's"),
        ('command = ["sh"]', "engine.server.command", "--port={port}"),
        ('command = ["./serve", "{port}"]', "engine.server.command", "absolute path"),
        ('command = ["/etc/passwd", "{port}"]', "engine.server.command", "not a program"),
        (
            'command = ["sh", "{port}"]\nstart_timeout_s = 300',
            "engine.server.start_timeout_s",
            "workers.start_timeout_s",
        ),
        ('command = ["sh", "{port}"]\nvoices = [""]', "engine.server.voices", "1 to 64"),
        ('command = ["sh", "{port}"]\napi_key_file = "/none"', "engine.server.api_key_file", "not a file"),
        ('command = ["sh"]\nurl = "http://[::1]:80"\n[workers]\nmax = 2', "engine.server.url", "same port"),
    ],
)
def test_a_server_that_could_not_be_started_or_reached_is_refused(section: str, key: str, words: str) -> None:
    found = problem(f'[engine]\nname = "server"\n[engine.server]\n{section}')
    assert found.startswith(f"{key}: ") and words in found, found


def test_a_server_needs_a_command_or_an_address() -> None:
    for section in (
        'command = ["sh", "{port}"]',
        'url = "https://speech.example/tts"',
        'url = "http://localhost:8000"',
    ):
        config.parse(f'[engine]\nname = "server"\n[engine.server]\n{section}')


def test_the_settings_of_an_unused_engine_may_stay() -> None:
    settings = config.parse('[engine]\nname = "espeak"\n[engine.glmtts]\nroot = "/not/mounted"\ndtype = "bf16"')
    assert settings.engine.glmtts.dtype == "bf16"


@pytest.mark.parametrize("owner", sorted({"root", "0", str(os.geteuid())}))
def test_customers_of_root_and_of_the_daemons_user_need_no_gateway_by_name(owner: str) -> None:
    settings = config.parse(f'[limits.clients."{owner}/anna"]\nrate = "1/minute"')
    assert f"{owner}/anna" in settings.limits.clients


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[workers]\nmin = 3\nmax = 2", "workers.min"),
        ("[workers]\ngpus = []", "workers.gpus"),
        ("[workers]\ngpus = [1, 1]", "workers.gpus"),
        ("[workers.restart]\nbackoff_initial_s = 60", "workers.restart.backoff_initial_s"),
        ("[queue]\nwarn_waiting = 11", "queue.warn_waiting"),
        ("[limits]\nrecording_min_s = 31", "limits.recording_min_s"),
        ('[limits]\nrate = "often"', "limits.rate"),
        ('[limits]\nrate_batch = "0/minute"', "limits.rate_batch"),
        ('[limits.clients.alice]\nrate = "often"', "limits.clients.alice.rate"),
        ('[limits.clients."a/b"]\nrate_batch = "0/day"', 'limits.clients."a/b".rate_batch'),
        ('[limits.clients."a b"]', 'limits.clients."a b"'),
        ('[limits.clients."key:"]', 'limits.clients."key:"'),
        ('[limits.clients."uid:1000"]', 'limits.clients."uid:1000"'),
        ('[limits.clients."web/anna"]', 'limits.clients."web/anna"'),
        ('[limits]\ngateways = ["web"]\n[limits.clients."web/"]', 'limits.clients."web/"'),
        ('[limits.clients.""]', 'limits.clients.""'),
        ("[workers]\nmax = 2\n[queue]\ninteractive_workers = 2", "queue.interactive_workers"),
        (
            '[engine]\nname = "fault"\n[engine.fault]\nslots = 2\n[workers]\nmax = 1\n[queue]\ninteractive_workers = 2',
            "queue.interactive_workers",
        ),
        ("[limits]\nheader_kib = 4", "limits.text_chars"),
        ("[limits]\nrecordings_mib = 15", "limits.recordings_mib"),
        ('[limits]\ngateways = ["a b"]', "limits.gateways"),
        ('[queue.classes.vip]\nusers = [""]', "queue.classes.vip.users"),
        ('[queue.classes.batch]\nusers = ["anna:x"]', "queue.classes.batch.users"),
        ('[audio]\ndefault_format = "ogg"\nsample_rate = 22050', "audio.sample_rate"),
        ('[audio]\noutputs = "out"', "audio.outputs"),
        ('[voices]\nfolder = "./voices"', "voices.folder"),
        ('[daemon]\nruntime_dir = "run"', "daemon.runtime_dir"),
        (f'[daemon]\nruntime_dir = "/{"x" * 100}"', "daemon.runtime_dir"),
        ('[daemon]\nstate_dir = "a\\u0000"', "daemon.state_dir"),
        ('[daemon]\nsocket_mode = "0060"', "daemon.socket_mode"),
        ('[daemon]\nsocket_group = "no-such-group-here"', "daemon.socket_group"),
        ('[daemon]\nadmin_group = "no-such-group-here"', "daemon.admin_group"),
        ('[engine]\npython = "/nonexistent/python"', "engine.python"),
        ('[engine]\npython = "python3"', "engine.python"),
        ('[engine]\npython = "/etc"', "engine.python"),
        ('[engine]\nwarmup_text = " "', "engine.warmup_text"),
        ('[engine]\nwarmup_text = "…"', "engine.warmup_text"),
        ('[engine.fault]\nstart = "crash"', "engine.fault"),
        ('[engine.glmtts]\nroot = "GLM-TTS"', "engine.glmtts.root"),
        ('[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "/etc/passwd"', "engine.glmtts.root"),
        ('[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "/a\\u0000"', "engine.glmtts.root"),
        ('[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "/a\\u001b"', "engine.glmtts.root"),
        ('[engine.glmtts]\ndictionary = "words.jsonl"', "engine.glmtts.dictionary"),
        (
            '[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "/usr"\ndictionary = "/etc"',
            "engine.glmtts.dictionary",
        ),
        ('[engine]\nname = "fault"\n[engine.fault]\nstart = "slow"', "engine.fault.start_s"),
    ],
)
def test_settings_that_contradict_each_other_or_the_machine_are_refused(text: str, key: str) -> None:
    found = problems(text)
    assert any(line.startswith(f"{key}: ") for line in found), found


def test_all_problems_are_reported_at_once_each_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[limits]\nmax_waiting = 3\nrate = "often"\n[workers]\nper_gpu = 0\nmin = 5\nmax = 2\n')
    with pytest.raises(ConfigError) as caught:
        config.read(file)
    assert [line.removeprefix(f"{file}: ").split(":")[0] for line in caught.value.problems] == [
        "limits.max_waiting",
        "workers.per_gpu",
        "workers.min",
        "limits.rate",
    ]
    assert str(caught.value).splitlines() == caught.value.problems


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = ", "at its end"),
        ("a = ?\n", "line 1, column 5"),
        ("[queue]\n\nmax_waiting == 3", "line 3, column 14"),
        ("[queue]\n[queue]", "line 2"),
        ("a = '\x00'", "line 1"),
        ("x = " + "[" * 100_000, "nested"),
    ],
)
def test_invalid_toml_is_refused_with_its_place(text: str, place: str) -> None:
    assert place in problem(text)


def test_a_file_that_can_not_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    binary, large = tmp_path / "binary.toml", tmp_path / "large.toml"
    binary.write_bytes(b"[queue]\n# \xff\n")
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    for path, words in (
        (tmp_path / "none.toml", "no such file"),
        (tmp_path, "is a directory"),
        (binary, "line 2: not UTF-8"),
        (large, "larger than 1 MiB"),
    ):
        with pytest.raises(ConfigError) as caught:
            config.read(path)
        assert caught.value.problems[0].startswith(f"{path}: ")
        assert words in caught.value.problems[0]


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


NAMES = st.text(max_size=12) | st.sampled_from(["alice", "1000", "key:a", "web/b", "uid:1", "a/b/c"])
LIMIT_VALUES = st.sampled_from(["5/minute", "", "often", 1, 0, 0.5, 2.0, True]) | VALUES
LIMITS_OF_CLIENTS = st.dictionaries(
    NAMES, st.dictionaries(st.sampled_from([*ClientLimits.__struct_fields__, "rat"]), LIMIT_VALUES) | VALUES, max_size=3
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(sorted(flat(Settings()))) | st.text(max_size=10), VALUES, max_size=4))
def test_no_document_raises_anything_but_config_errors(values: dict[str, object]) -> None:
    document: dict[str, Any] = {}
    for path, value in values.items():
        *sections, key = path.split(".")
        table = document
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                return
        table[key] = value
    found: list[str] = []
    load.check_section(document, Settings, "", found)
    assert all(line.isprintable() for line in found), found


@settings(deadline=None, max_examples=200)
@given(LIMITS_OF_CLIENTS)
def test_limits_of_clients_are_accepted_or_each_wrong_client_is_named(clients: dict[str, Any]) -> None:
    found: list[str] = []
    good = load.check_section({"limits": {"gateways": ["web"], "clients": clients}}, Settings, "", found)
    parsed = msgspec.convert(good, Settings)
    found += combinations(parsed, set())
    assert all(line.isprintable() and line.startswith("limits.clients.") for line in found), found
    for name, own in clients.items():
        path = f"limits.clients.{key_in_toml(name)}"
        if not any(line.startswith(path) for line in found):
            assert msgspec.convert(own, ClientLimits) == parsed.limits.clients[name]
