"""What every command promises: exit codes, JSON, words that help, and options in any place."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import UNSET

from glmtts.client.cli import main
from glmtts.client.cli.config import toml_lines
from glmtts.client.cli.ui.humanize import duration, humanise, size
from glmtts.protocol import control, events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Request

from ..scripted_daemon import ScriptedDaemon, accept_only, answering, op_of, refusing
from .conftest import Ctl

COMMANDS = sorted(main.list_commands(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("place", [["--json", "ping"], ["ping", "--json"]])
def test_json_is_understood_before_and_after_the_command(ctl: Ctl, place: list[str]) -> None:
    result = ctl(*place)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["protocol"] == 1


def test_the_endpoint_after_the_command_wins(daemon: ScriptedDaemon, no_daemon: str) -> None:
    result = CliRunner().invoke(main, ["--endpoint", no_daemon, "ping", "--endpoint", daemon.endpoint])
    assert result.exit_code == 0


@pytest.mark.parametrize("command", ["ping", "say hi -o x.wav", "status", "jobs", "events", "events -f", "top --once"])
def test_without_a_daemon_a_command_says_so_and_how_to_start_it(no_daemon: str, command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--endpoint", no_daemon])
    assert result.exit_code == 3
    assert "glmttsd" in result.stderr
    assert "systemctl start glmtts" in result.stderr
    assert str(Path(no_daemon.removeprefix("ipc://")).parent) in result.stderr
    assert result.stdout == ""


def test_a_program_gets_the_failure_as_json_with_the_same_exit_code(no_daemon: str) -> None:
    result = CliRunner().invoke(main, ["info", "--json", "--endpoint", no_daemon])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["code"] == "not_running"


def test_wrong_usage_is_2_and_json_as_well() -> None:
    result = CliRunner().invoke(main, ["recycle", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "usage"
    assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    ("code", "job", "expected"),
    [
        (ErrorCode.SYNTHESIS_FAILED, "j1", 4),
        (ErrorCode.DEADLINE_EXCEEDED, "j1", 4),
        (ErrorCode.WORKER_CRASHED, "j1", 4),
        (ErrorCode.UNAVAILABLE, "j1", 3),
        (ErrorCode.SHUTTING_DOWN, None, 3),
        (ErrorCode.FORBIDDEN, None, 1),
        (ErrorCode.JOB_NOT_FOUND, "j1", 1),
    ],
)
def test_the_exit_code_tells_a_failed_job_from_a_refusal_and_from_a_daemon_that_is_not_ready(
    ctl: Ctl, daemon: ScriptedDaemon, code: ErrorCode, job: str | None, expected: int
) -> None:
    daemon.script = refusing(code, **({} if job is None else {"job": job}))
    result = ctl("wait", "j1")
    assert result.exit_code == expected
    assert f"it says why ({code})" in result.stderr


def test_a_job_that_does_not_end_is_124(ctl: Ctl, daemon: ScriptedDaemon) -> None:
    daemon.script = accept_only
    assert ctl("wait", "j1", "--timeout", "0.1").exit_code == 124


@pytest.mark.parametrize(
    ("command", "op", "keys"),
    [
        (["recycle", "all"], "recycle", {"worker": "all"}),
        (["scale", "--min", "1", "--max", "3"], "scale", {"min": 1, "max": 3}),
        (["scale", "--max", "3"], "scale", {"min": UNSET, "max": 3}),
        (["pause"], "pause", {}),
        (["resume"], "resume", {}),
        (["drain", "--timeout", "5"], "drain", {"timeout_s": 5.0}),
        (["reload"], "reload", {}),
        (["stop"], "stop", {}),
        (["log-level", "debug"], "log_level", {"level": "debug"}),
        (["voice", "remove", "amy"], "voice_remove", {"name": "amy"}),
        (["cancel", "j1", "--any"], "cancel", {"job": "j1"}),
        (["job", "j1", "--any"], "job", {"job": "j1"}),
        (["jobs", "--all", "--state", "running"], "jobs", {"state": "running"}),
        (["config", "show"], "config", {}),
    ],
)
def test_an_operation_reaches_the_control_socket(
    ctl: Ctl, control_daemon: ScriptedDaemon, command: list[str], op: str, keys: dict[str, Any]
) -> None:
    result = ctl(*command)
    assert result.exit_code == 0, result.output
    _, request, _ = control_daemon.next()
    assert op_of(request) == op
    for key, value in keys.items():
        assert getattr(request, key) == value


def test_a_voice_is_added_with_its_recording(ctl: Ctl, control_daemon: ScriptedDaemon, tmp_path: Path) -> None:
    recording = tmp_path / "amy.wav"
    recording.write_bytes(b"RIFF...")
    result = ctl("voice", "add", "amy", recording, "--text", "hello", "--language", "en", "--replace")
    assert result.exit_code == 0, result.output
    asked = control_daemon.next()
    assert isinstance(asked.request, control.VoiceAdd)
    assert (asked.request.name, asked.request.text, asked.request.language) == ("amy", "hello", "en")
    assert asked.request.replace and asked.body == b"RIFF..."


def test_a_drain_that_ran_out_of_time_is_124(ctl: Ctl, control_daemon: ScriptedDaemon) -> None:
    left = {"drained": False, "left": 2}
    control_daemon.script = answering(left)
    result = ctl("drain", "--timeout", "1")
    assert result.exit_code == 124
    assert "2 jobs are left" in result.stdout


def test_jobs_are_a_table_that_a_pipe_gets_whole(ctl: Ctl, daemon: ScriptedDaemon) -> None:
    jobs = [
        events.JobInfo(
            job="j" * 40, state="failed", priority="batch", created=0.0, attempts=2, text_length=5, message="很长" * 60
        )
    ]
    daemon.script = lambda d, peer, request, _: d.send(peer, events.JobsAnswer(id=request.id, jobs=jobs))
    result = ctl("jobs")
    assert "j" * 40 in result.stdout
    assert "很长" * 60 in result.stdout
    assert result.stdout.startswith("JOB ")
    assert json.loads(ctl("jobs", "--json").stdout)["jobs"][0]["attempts"] == 2


def test_info_explains_the_options_of_the_engine(ctl: Ctl, daemon: ScriptedDaemon) -> None:
    properties = {"speed": {"type": "number", "minimum": 0.5, "maximum": 2, "default": 1}}
    schema = {"$ref": "#/$defs/Options", "$defs": {"Options": {"properties": properties}}}
    info = events.InfoAnswer(
        id="", version="1", protocol=1, engine="espeak", sample_rate=24_000, sample_rates=[24_000], formats=["wav"],
        voices=[events.Voice(name="zh")], default_voice="zh", clones_voices=False, limits={"text_chars": 5_000},
        options=schema, ready=True,
    )  # fmt: skip

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        info.id = request.id
        daemon.send(peer, info)

    daemon.script = script
    result = ctl("info")
    assert "number >= 0.5 and <= 2, default 1" in result.stdout
    assert json.loads(ctl("info", "--json").stdout)["options"] == schema


def test_a_configuration_that_the_daemon_would_refuse_is_told_without_starting_it(tmp_path: Path) -> None:
    wrong = tmp_path / "glmtts.toml"
    wrong.write_text("[deamon]\n")
    result = CliRunner().invoke(main, ["config", "check", str(wrong)])
    assert result.exit_code == 1
    assert "deamon" in result.stderr
    good = tmp_path / "good.toml"
    good.write_text(CliRunner().invoke(main, ["config", "default"]).stdout)
    assert CliRunner().invoke(main, ["config", "check", str(good)]).exit_code == 0
    # The gateway reads another section of the file.
    good.write_text(good.read_text().replace("body_mib = 32", "body_mib = 0"))
    result = CliRunner().invoke(main, ["config", "check", str(good)])
    assert result.exit_code == 0 and "warning: gateway.body_mib: expected a whole number" in result.output


def test_a_configuration_with_which_no_worker_would_start_is_not_good(tmp_path: Path) -> None:
    root = tmp_path / "GLM-TTS"
    (root / "ckpt").mkdir(parents=True)
    file = tmp_path / "glmtts.toml"
    file.write_text(f'[engine]\nname = "glmtts"\n[engine.glmtts]\nroot = "{root}"\n')
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert result.exit_code == 1
    assert f"{file}: GLM-TTS: {root} is not a GLM-TTS checkout" in result.stderr
    assert "good" not in result.stderr
    told = json.loads(CliRunner().invoke(main, ["config", "check", "--json", str(file)]).stdout)
    assert (told["ok"], "no worker can start" in told["message"]) == (False, True)


def test_the_configuration_is_shown_as_toml_that_can_be_used_again() -> None:
    values = {"daemon": {"log_level": "info", "a b": 1}, "workers": {"gpus": [0, 1], "recycle": {"max_jobs": 0}}}
    assert tomllib.loads("\n".join(toml_lines(values))) == values


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_GLMTTSCTL_COMPLETE" in result.stdout


def test_a_quick_command_loads_neither_rich_nor_asyncio_nor_the_daemon() -> None:
    code = (
        "import sys\nfrom glmtts.client.cli import main\n"
        "try: main(['ping', '--endpoint', 'ipc:///nowhere'])\nexcept SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m in ('rich', 'asyncio', 'glmtts.daemon', 'numpy', 'psutil')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_values_are_shown_in_the_units_that_their_keys_name() -> None:
    assert humanise("age_s", 4_000.0) == "66 min 40 s"
    assert humanise("rss", 1_536) == "1.5 KiB"
    assert humanise("ready", True) == "yes"
    assert humanise("x", None) == "-"
    assert (duration(0.5), duration(10_000), duration(400_000)) == ("500 ms", "2 h 46 min", "4 d 15 h")
    assert (size(10), size(3 * 2**20)) == ("10 bytes", "3.0 MiB")


def test_no_more_workers_are_asked_for_than_a_machine_can_have(ctl: Ctl, control_daemon: ScriptedDaemon) -> None:
    for option in ("--min", "--max"):
        refused = ctl("scale", option, 1_000_000)
        assert refused.exit_code == 2 and "256" in refused.stderr, refused.output
    assert control_daemon.requests.empty()


@pytest.mark.parametrize("depth", ["--ready", "--deep"])
def test_a_daemon_that_can_not_be_asked_by_tcp_is_not_said_to_be_down(depth: str) -> None:
    refused = CliRunner().invoke(main, ["--endpoint", "tcp://127.0.0.1:5555", "health", depth])
    assert refused.exit_code == 1
    assert "no" not in refused.stdout and "--live" in refused.stderr


def test_a_client_with_half_of_its_keys_says_nothing_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTTS_SERVER_KEY", "x" * 40)
    monkeypatch.delenv("GLMTTS_SECRET_KEY", raising=False)
    refused = CliRunner().invoke(main, ["--endpoint", "tcp://127.0.0.1:5555", "health", "--live"])
    assert refused.exit_code == 1
    assert not refused.stdout and "GLMTTS_SECRET_KEY" in refused.stderr


def test_a_check_of_a_good_file_warns_of_names_that_nobody_has(tmp_path: Path) -> None:
    file = tmp_path / "glmtts.toml"
    file.write_text('[limits]\ngateways = ["nosuchuser"]\n')
    shown = CliRunner().invoke(main, ["config", "check", str(file)])
    assert shown.exit_code == 0 and "good" in shown.stdout and "'nosuchuser'" in shown.stdout
    told = json.loads(CliRunner().invoke(main, ["config", "check", "--json", str(file)]).stdout)
    assert told["ok"] and len(told["warnings"]) == 1 and "nosuchuser" in told["warnings"][0]


@pytest.mark.parametrize("gone", [False, True])
def test_a_daemon_whose_clients_can_t_find_it_is_not_ready(
    ctl: Ctl, daemon: ScriptedDaemon, control_daemon: ScriptedDaemon, gone: bool
) -> None:
    if gone:
        Path(daemon.endpoint.removeprefix("ipc://")).unlink()
    well = {"healthy": True, "checked": "ready"}
    control_daemon.script = answering(well)
    result = ctl("health")
    assert result.exit_code == (3 if gone else 0) and ("no such socket" in result.stdout) is gone
