"""A word that is broken can be neither read nor copied: lines end at blanks, and go on below the text."""

from __future__ import annotations

import json

import click
import pytest

from glmtts.client import News
from glmtts.client.cli import doctor
from glmtts.client.cli import events as module
from glmtts.client.cli.ui.wrap import cells, hanging

from ..scripted_daemon import Answers
from .conftest import Ctl, OnTerminal

DETAIL = (
    "nvmlDeviceGetHandleByIndex (GPU 1): GPU is lost: the GPU fell off the bus or can't be reached: see 'dmesg' for "
    "Xid 79; a reboot may bring it back, otherwise check its power and seat"
)
WORKER = {
    "name": "w0", "state": "ready", "pid": 2331, "process_state": "S", "jobs": ["6cc57b2c-7"], "jobs_since_start": 4,
    "load_s": 0.142, "torch_allocated": 2**31, "torch_reserved": 2**31,
    "last_death": {"cause": "crashed", "detail": DETAIL, "ago_s": 30.9},
}  # fmt: skip


def words(text: str) -> list[str]:
    return text.split()


def test_a_line_ends_at_a_blank_and_the_next_begins_below_the_text() -> None:
    assert hanging("  -> ", "ask the driver why", 15) == ["  -> ask the", "     driver why"]
    assert hanging("! ", "", 10) == ["!"]


def test_a_pipe_gets_one_line() -> None:
    assert hanging("! ", DETAIL, None) == [f"! {DETAIL}"]


def test_a_path_stays_whole_for_who_copies_it() -> None:
    path = "/" + "x" * 40
    assert hanging("! ", f"see {path} please", 20) == ["! see", f"  {path}", "  please"]


def test_chinese_which_has_no_blanks_ends_at_the_edge_as_well() -> None:
    lines = hanging("! ", "显卡掉线了" * 8 + " GPU", 20)
    assert all(cells(line) <= 20 for line in lines) and len(lines) > 4
    assert "".join(line[2:] for line in lines).startswith("显卡掉线了" * 8)


@pytest.mark.parametrize("width", [80, 120])
def test_no_word_of_workers_and_gpus_is_broken(on_terminal: OnTerminal, answers: Answers, width: int) -> None:
    answers["workers"] = {"workers": [WORKER]}
    answers["gpus"] = {
        "nvml": {"state": "blocked", "detail": DETAIL},
        "gpus": [{"index": 1, "state": "lost", "detail": DETAIL, "workers": [WORKER | {"vram": 2**31}] * 9}],
    }
    for command in (["workers", "-v"], ["gpus"]):
        shown = on_terminal(*command, width=width).stdout
        assert all(cells(line) <= width for line in shown.splitlines()), shown
        assert " ".join(words(DETAIL)) in " ".join(words(shown)), shown
        assert "\n    " in shown, "the indent is kept"


@pytest.mark.parametrize("width", [80, 120])
def test_no_word_of_what_health_says_is_broken(on_terminal: OnTerminal, answers: Answers, width: int) -> None:
    problem = {"severity": "bad", "name": "gpu_lost.1", "what": DETAIL, "do": DETAIL}
    answers["health"] = {"healthy": False, "problems": [problem]}
    shown = on_terminal("health", width=width).stdout
    assert all(cells(line) <= width for line in shown.splitlines()), shown
    assert words(shown).count("nvmlDeviceGetHandleByIndex") == 2 and " ".join(words(DETAIL)) in " ".join(words(shown))


def test_an_event_goes_on_below_its_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "terminal_width", lambda: 80)
    shown = module._line(News("worker.backoff", {"name": "w0", "state": "backoff", "reason": DETAIL}))
    first, *others = click.unstyle(shown).splitlines()
    assert first[14:].startswith("worker.backoff    name=w0") and others
    assert all(cells(line) <= 80 and line.startswith(" " * 14) and line[14] != " " for line in others)
    assert DETAIL in " ".join(words(click.unstyle(shown)))


@pytest.mark.usefixtures("daemon")
def test_the_doctor_fits_the_terminal_and_a_file_of_its_report_can_be_read(
    on_terminal: OnTerminal, ctl: Ctl, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_machine", lambda *_: [])
    problem = {"severity": "bad", "name": "gpu_lost.1", "what": DETAIL, "do": DETAIL}
    answers["status"] = {"state": "running", "attention": [problem]}
    answers["workers"] = {"workers": [WORKER]}
    for width, shown in ((80, on_terminal("doctor").stdout), (100, ctl("doctor").stdout)):
        # What the machine has may have a path that is longer: of the daemon it is known what it says.
        said = shown[shown.index("WRONG    daemon: gpu_lost.1") :].splitlines()
        assert all(cells(line) <= width for line in said), said
        assert "         means: some requests fail; others are served" in said
        assert any(line.startswith("         fix:   nvmlDevice") for line in said)
        assert words(shown).count("nvmlDeviceGetHandleByIndex") == 2
    checks = {check["name"]: check for check in json.loads(ctl("doctor", "--json").stdout)["checks"]}
    assert checks["daemon: gpu_lost.1"]["seen"] == DETAIL
