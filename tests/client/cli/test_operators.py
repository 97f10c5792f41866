"""`workers`, `gpus`, `scale` and `quarantine`, against answers as the daemon gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glmtts.protocol import control
from glmtts.protocol.requests import Request

from ..scripted_daemon import Answers, ScriptedDaemon
from .conftest import Ctl

GIB = 2**30

ROW: dict[str, Any] = {
    "name": "w1", "state": "ready", "pid": 77, "gpu": 0, "jobs": [], "jobs_done": 12_345, "jobs_since_start": 60,
    "restarts": 3, "age_s": 12_000.0, "load_s": 4.2, "rss": int(1.2 * GIB), "vram": int(8.6 * GIB),
    "vram_trust": "process", "torch_allocated": 7 * GIB, "torch_reserved": 8 * GIB, "last_death": None,
    "trend": "", "trend_mib_per_job": 0.0, "backoff_s": None, "reason": "", "replaces": None, "process_state": "S",
}  # fmt: skip


def row(**changes: Any) -> dict[str, Any]:
    return ROW | changes


def gpu(**changes: Any) -> dict[str, Any]:
    return {
        "index": 0, "uuid": "GPU-1", "name": "NVIDIA H100", "state": "ok", "detail": "", "total": 80 * GIB,
        "used": 31 * GIB, "free": 49 * GIB, "utilization": 87, "temperature": 64, "mig": False,
        "workers": [{"name": "w1", "pid": 77, "vram": 26 * GIB, "vram_trust": "process"}], "others": 5 * GIB,
        "need": 9 * GIB, "room": 5, "sampled_ago_s": 0.4,
    } | changes  # fmt: skip


NVML = {"state": "ok", "detail": "", "driver": "550.54.14", "version": "12.550"}
HOST = {"total": 128 * GIB, "available": 41 * GIB}


def test_workers_shows_memory_its_source_and_where_it_goes(ctl: Ctl, answers: Answers) -> None:
    death = {"cause": "crashed", "detail": "killed by SIGSEGV", "ago_s": 12.0}
    answers["workers"] = {
        "workers": [
            row(last_death=death, trend_mib_per_job=38.0),
            row(name="w2", vram_trust="device", gpu=1),
            row(name="w3", vram_trust="torch"),
            row(name="w4", state="waiting", pid=None, vram=None, vram_trust="none", rss=None, age_s=None),
        ],
        "bounds": {"min": 1, "max": 4, "wanted": 2},
    }
    result = ctl("workers")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 100 for line in lines), "it fits in 100 columns"
    assert "8.6 GiB (NVML)" in lines[1] and "+38 MiB/job" in lines[1] and "3, crashed 12s ago" in lines[1]
    assert "~8.6 GiB (device)" in lines[2] and "8.6 GiB (torch)" in lines[3]
    assert "w1: last death: crashed (killed by SIGSEGV), 12.0 s ago" in lines
    assert "Between 1 and 4 workers; wanted now: 2." in lines
    assert json.loads(ctl("workers", "--json").stdout) == answers["workers"]


def test_workers_says_why_one_waits_is_replaced_or_can_not_be_killed(ctl: Ctl, answers: Answers) -> None:
    answers["workers"] = {
        "workers": [
            row(state="draining", reason="grew 38 MiB per job over 60 jobs, 24,100 of 24,576 MiB in 12 jobs"),
            row(name="w2", state="waiting", reason="GPU 0 has 3.1 GiB free, a worker needs 8.6 GiB", replaces="w1"),
            row(name="w3", state="stopping", process_state="D"),
            row(name="w4", state="backoff", backoff_s=7.5),
        ]
    }
    said = ctl("workers").stdout
    assert "w1: is being replaced: grew 38 MiB per job" in said
    assert "w2: waits: GPU 0 has 3.1 GiB free" in said and "w2: replaces w1" in said
    assert "stopping (D)" in said and "w3: in uninterruptible sleep (D)" in said
    assert "backoff 7s" in said


def test_workers_verbose_has_what_the_table_has_no_room_for(ctl: Ctl, answers: Answers) -> None:
    answers["workers"] = {"workers": [row(jobs=["j5"], trend="grew 38 MiB per job over 60 jobs")]}
    said = ctl("workers", "-v").stdout
    for words in ("pid 77", "jobs now j5", "loaded in 4.20 s", "torch reserved 8.0 GiB", "grew 38 MiB per job over 60"):
        assert words in said
        assert words not in ctl("workers").stdout


def test_without_workers_it_says_so(ctl: Ctl, answers: Answers) -> None:
    answers["workers"] = {"workers": []}
    assert "No workers" in ctl("workers").stdout


def test_gpus_shows_who_has_the_memory_and_what_still_fits(ctl: Ctl, answers: Answers) -> None:
    answers["gpus"] = {"nvml": NVML, "gpus": [gpu(), gpu(index=1, room=0)], "host": HOST}
    said = ctl("gpus").stdout
    for words in (
        "GPU 0", "NVIDIA H100", "31.0 of 80.0 GiB", "our workers 26.0 GiB", "others 5.0 GiB", "free 49.0 GiB",
        "87 %, 64 °C", "w1 26.0 GiB (NVML)", "for 5 more workers (9.0 GiB each)", "for no more workers",
        "driver 550.54.14", "41.0 of 128.0 GiB memory available",
    ):  # fmt: skip
        assert words in said
    assert json.loads(ctl("gpus", "--json").stdout) == answers["gpus"]


def test_a_lost_gpu_is_shown_with_the_words_of_nvml(ctl: Ctl, answers: Answers) -> None:
    detail = "nvmlDeviceGetMemoryInfo: GPU is lost: the GPU fell off the bus"
    answers["gpus"] = {"nvml": NVML, "gpus": [gpu(state="lost", detail=detail, sampled_ago_s=90.0)], "host": HOST}
    said = ctl("gpus").stdout
    assert "lost" in said and detail in said and "none in this state" in said and "1m old" in said


def test_a_blocked_nvml_is_shown_as_what_it_is(ctl: Ctl, answers: Answers) -> None:
    nvml = NVML | {"state": "blocked", "detail": "nvmlDeviceGetMemoryInfo has not returned for 30 s"}
    answers["gpus"] = {"nvml": nvml, "gpus": [gpu(others=None, utilization=None, room=None)], "host": {}}
    said = ctl("gpus").stdout
    assert "blocked: nvmlDeviceGetMemoryInfo has not returned" in said
    assert "others unknown" in said and "unknown; a worker needs 9.0 GiB" in said


def test_no_gpu_is_no_failure_and_says_whether_it_is_a_problem(ctl: Ctl, answers: Answers) -> None:
    answers["gpus"] = {"nvml": {"state": "absent", "detail": "no NVIDIA driver here"}, "gpus": [], "host": HOST}
    result = ctl("gpus")
    assert result.exit_code == 0
    assert "No GPU" in result.stdout and "no NVIDIA driver here" in result.stdout and "doctor" in result.stdout


def test_scale_says_how_many_there_may_be(ctl: Ctl, answers: Answers, control_daemon: ScriptedDaemon) -> None:
    answers["scale"] = {"min": 1, "max": 3, "workers": 2}
    assert "Between 1 and 3 workers" in ctl("scale", "--max", "3").stdout
    assert json.loads(ctl("scale", "--json").stdout) == answers["scale"]
    answers["scale"] = {"min": 2, "max": 2, "workers": 2}
    assert "Always 2 workers; there are 2 now." in ctl("scale").stdout
    assert ctl("scale", "--min", "4", "--max", "2").exit_code == 2
    assert control_daemon.next_of(control.Scale).max == 3


@pytest.fixture
def quarantined(answers: Answers) -> list[dict[str, Any]]:
    """Three contents, two of which begin alike."""
    entries = [
        {"content": content, "deaths": 2, "cause": "crashed", "detail": "killed by SIGSEGV", "client": "uid:1000",
         "job": "j7", "expires_in_s": 1_800.0}
        for content in ("ab" * 32, "ab" * 8 + "cd" * 24, "ff" * 32)
    ]  # fmt: skip

    def answer(request: Request) -> dict[str, Any]:
        assert isinstance(request, control.Quarantine)
        cleared = [e for e in entries if request.clear in ("all", e["content"])]
        for entry in cleared:
            entries.remove(entry)
        return {"quarantined": list(entries), "cleared": len(cleared)}

    answers["quarantine"] = answer
    return entries


def test_quarantine_lists_what_workers_died_of_and_until_when(ctl: Ctl, quarantined: list[dict[str, Any]]) -> None:
    said = ctl("quarantine", "list").stdout
    for words in ("crashed (killed by SIGSEGV)", "uid:1000", "j7", "30m"):
        assert words in said
    assert "ab" * 8 + "a\n" not in said and ("ab" * 8 + "a") in said, "as many digits as tell them apart"
    assert json.loads(ctl("quarantine", "list", "--json").stdout)["quarantined"] == quarantined
    assert ctl("quarantine", "clear", "--all").stdout.startswith("3 cleared")
    assert ctl("quarantine", "list").stdout == "No job is in quarantine.\n"


def test_a_few_digits_clear_a_content_and_never_a_wrong_one(ctl: Ctl, quarantined: list[dict[str, Any]]) -> None:
    assert ctl("quarantine", "clear", "FF").stdout.startswith("1 cleared")
    assert [entry["content"][:2] for entry in quarantined] == ["ab", "ab"]
    many, none = ctl("quarantine", "clear", "abab"), ctl("quarantine", "clear", "99")
    assert many.exit_code == 2 and "more digits" in many.stderr
    assert none.exit_code == 1 and "99" in none.stderr
    assert len(quarantined) == 2
    assert ctl("quarantine", "clear").exit_code == 2
    assert ctl("quarantine", "clear", "ab", "--all").exit_code == 2
    assert ctl("quarantine", "clear", "").exit_code == 1
    assert len(quarantined) == 2


def test_metrics_are_printed_as_prometheus_reads_them(ctl: Ctl, answers: Answers) -> None:
    answers["metrics"] = {"text": "# TYPE glmtts_x gauge\nglmtts_x 1.0\n"}
    assert ctl("metrics").stdout == "# TYPE glmtts_x gauge\nglmtts_x 1.0\n"
    assert json.loads(ctl("metrics", "--json").stdout)["text"].endswith("glmtts_x 1.0\n")
