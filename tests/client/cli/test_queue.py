"""`queue`, `limits`, `cancel --client` and `jobs --client`: what an operator sees and ends at three in the morning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from glmtts.client.cli import main
from glmtts.client.cli.jobs import state_of
from glmtts.client.cli.queue import lines_of
from glmtts.client.cli.ui.wrap import cells, shorten
from glmtts.protocol import control, events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel, ListJobs, Request

from ..scripted_daemon import Answers, ScriptedDaemon
from .conftest import GLMTTSCTL, Ctl

CUSTOMER = "uid:33/语音客服中心第七分部的客户张三丰先生与他的全家"


def job(number: int, client: str, user: str, priority: str, wait: float | None, **more: Any) -> dict[str, Any]:
    return {
        "job": f"j{number}", "client": client, "user": user, "priority": priority, "position": number,
        "estimated_wait_s": wait, "text_length": 40, "created": 1e9, "deadline_in_s": None,
        "durable": priority == "batch", **more,
    }  # fmt: skip


def client_row(client: str, user: str, waiting: int, running: int = 0) -> dict[str, Any]:
    return {"client": client, "user": user, "waiting": waiting, "running": running, "work_s": 20.0 * waiting}


def class_row(waiting: int, running: int, weight: int, suspended: int = 0) -> dict[str, Any]:
    return {
        "waiting": waiting, "running": running, "suspended": suspended, "work_s": waiting * 8.0, "weight": weight
    }  # fmt: skip


@pytest.fixture
def queue() -> dict[str, Any]:
    """A book in the queue, three sentences before it, and a wide customer of a gateway."""
    jobs = [
        job(0, "uid:1000", "alice", "interactive", 1.2, deadline_in_s=20.0),
        job(1, "uid:1001", "李小龙", "interactive", 4.0),
        job(2, CUSTOMER, "www-data", "interactive", 12.2),
        *(job(n, "uid:1002", "bookreader", "batch", 15.0 + n) for n in range(3, 20)),
    ]
    return {
        "paused": False,
        "classes": {
            "vip": class_row(0, 1, 16), "interactive": class_row(3, 1, 4), "batch": class_row(7_812, 0, 1, suspended=2)
        },
        "clients": [
            client_row("uid:1000", "alice", 1, 1), client_row("uid:1002", "bookreader", 7_812),
            client_row("uid:1001", "李小龙", 1), client_row(CUSTOMER, "www-data", 1),
        ],
        "jobs": jobs,
        "more": 7_795,
    }  # fmt: skip


def words(lines: list[Text]) -> list[str]:
    return [line.plain.rstrip() for line in lines]


def test_the_queue_says_at_a_glance_who_fills_it_and_when_a_sentence_is_spoken(
    ctl: Ctl, answers: Answers, queue: dict[str, Any]
) -> None:
    answers["queue"] = queue
    lines = ctl("queue").stdout.splitlines()
    assert lines[0] == "7,815 jobs wait, 2 run. The last of 3 interactive jobs starts in about 12.0 s."
    assert ["batch", "7,812", "0", "2", "17h21m", "1"] in [line.split() for line in lines]
    clients = lines[next(n for n, line in enumerate(lines) if line.startswith("USER")) + 1 :]
    assert clients[0].startswith("bookreader") and clients[0].endswith("100 %"), "who has most comes first"
    assert any(CUSTOMER in line for line in lines), "a pipe gets names whole"
    assert lines[-1].startswith("... and 7,795 more")
    assert json.loads(ctl("queue", "--json").stdout) == queue


def test_a_paused_queue_says_so_first_and_promises_no_time(queue: dict[str, Any]) -> None:
    lines = words(lines_of(queue | {"paused": True}, 120))
    assert lines[0].startswith("PAUSED: no job starts until `glmttsctl resume`; 7,815 jobs wait")
    assert not any("STARTS IN" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interactive": class_row(0, 0, 4)}, "An interactive job that comes now is the next to start."),
        ({"interactive": class_row(1, 0, 4)}, "The waiting interactive job starts in about 12.0 s."),
    ],
)
def test_the_time_for_a_sentence_is_told_whatever_waits(
    queue: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    queue["classes"] |= changes
    assert words(lines_of(queue, None))[0].endswith(said)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_the_queue_fits_the_terminal_with_wide_names_too(queue: dict[str, Any], width: int) -> None:
    lines = words(lines_of(queue, width))
    tables = [line for line in lines[2:] if not line.startswith("...")]
    assert max(map(cells, tables)) <= width
    starts = next(n for n, line in enumerate(lines) if "STARTS IN" in line)
    assert "12s" in lines[starts + 3] and "www-data" in lines[starts + 3]


def test_two_customers_of_one_gateway_are_told_apart_on_any_terminal(queue: dict[str, Any]) -> None:
    queue["clients"].append(client_row("uid:33/李四", "www-data", 5))
    lines = words(lines_of(queue, 60))
    assert any("uid:33/李四" in line for line in lines)


def test_one_client_alone_is_shown_by_its_user_or_its_key(
    ctl: Ctl, answers: Answers, queue: dict[str, Any], control_daemon: ScriptedDaemon
) -> None:
    answers["queue"] = queue
    for name in ("bookreader", "uid:1002"):
        found = json.loads(ctl("queue", "--client", name, "--limit", "2", "--json").stdout)
        assert [row["user"] for row in found["clients"]] == ["bookreader"]
        assert [row["job"] for row in found["jobs"]] == ["j3", "j4"]
        assert found["more"] == 7_810
        assert control_daemon.next_of(control.Queue).limit == 1_000


def test_watching_the_queue_in_a_pipe_is_a_line_each_time(
    daemon: ScriptedDaemon, answers: Answers, queue: dict[str, Any]
) -> None:
    answers["queue"] = queue
    command = [*GLMTTSCTL, "queue", "--watch", "--json", "--endpoint", daemon.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline()) for _ in range(2)] == [queue, queue]
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")


NAMES = st.text(max_size=40)
COUNTS = st.integers(0, 10**6)


@given(
    st.lists(st.builds(client_row, client=NAMES, user=NAMES, waiting=COUNTS, running=COUNTS), max_size=4),
    st.lists(st.builds(job, COUNTS, NAMES, NAMES, st.sampled_from(["vip", "batch"]), st.none() | COUNTS), max_size=4),
    st.integers(20, 150),
)
def test_no_names_and_no_numbers_break_the_picture(
    clients: list[dict[str, Any]], jobs: list[dict[str, Any]], width: int
) -> None:
    for line in lines_of({"classes": {}, "clients": clients, "jobs": jobs}, width):
        assert line.plain.isprintable()


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_shortened_name_fits_and_keeps_both_its_ends(text: str, most: int) -> None:
    short = shorten(text, most)
    assert cells(short) <= most and short.isprintable()
    assert shorten(text, None) == shorten(text, 1_000)


# --- limits


def limit_row(**changes: Any) -> dict[str, Any]:
    return {
        "client": "uid:1000", "user": "alice", "rate": "10/minute", "rate_batch": "", "tokens": 3.2,
        "tokens_batch": None, "next_token_in_s": None, "next_batch_token_in_s": None, "jobs": 2, "max_jobs": 1_024,
        "waiting": 1, "share": 8, "waiting_batch": 0, "share_batch": 8_000, "own": False, "gateway": False,
    } | changes  # fmt: skip


GENERAL = {
    "rate": "10/minute", "rate_batch": "", "max_waiting": 10, "max_waiting_batch": 10_000, "max_share": 0.8,
    "max_jobs": 1_024,
}  # fmt: skip


def test_limits_of_one_client_show_what_it_holds_and_has_lost(ctl: Ctl, answers: Answers) -> None:
    row = {"client": "uid:1001", "user": "bob", "held": {"results": 3 << 20, "keys": 4}, "removed": {"results": 7}}
    tables = {
        "results": {"held": 32 << 20, "most": 32 << 20, "clients": 2, "share": 16 << 20},
        "keys": {"held": 9, "most": 10_000, "clients": 3, "share": 3_333},
        "ended": {"held": 0, "most": 7_500, "clients": 0, "share": 7_500},
    }
    answers["limits"] = {"limits": GENERAL, "clients": [row], "tables": tables}
    said = ctl("limits", "bob").stdout
    assert "lost 7 rows early" in said and "ended" not in said
    assert "3.0 MiB; 32.0 MiB of 32.0 MiB are taken by 2 clients; 7 rows lost early, as it held most" in said
    assert "4; 9 of 10,000 are taken by 3 clients" in said
    assert "MiB" not in ctl("limits").stdout


def test_limits_say_what_each_may_still_do_and_when_the_next_job_is_taken(ctl: Ctl, answers: Answers) -> None:
    rows = [
        limit_row(own=True, rate="60/minute"),
        limit_row(client="uid:1002", user="bookreader", tokens=0.3, next_token_in_s=4.3, jobs=1_024),
        limit_row(client="uid:33", user="www-data", gateway=True, rate=""),
    ]
    answers["limits"] = {"limits": GENERAL, "clients": rows}
    said = ctl("limits").stdout
    for expected in (
        "10/minute (vip, interactive), any number (batch)", "10,000 (batch); 80 % of them for one client",
        "now, 3 of 60/minute", "in 5s, 10/minute", "1,024/1,024", "own limits", "gateway", "any",
    ):  # fmt: skip
        assert expected in said
    assert "NEXT BATCH" not in said, "nobody has a limit there"
    assert json.loads(ctl("limits", "--json").stdout) == answers["limits"]


def test_limits_of_one_client_are_asked_for_by_name(ctl: Ctl, answers: Answers, control_daemon: ScriptedDaemon) -> None:
    answers["limits"] = lambda _: {"limits": GENERAL, "clients": []}
    assert "The client nobody is unknown." in ctl("limits", "nobody").stdout
    assert control_daemon.next_of(control.GetLimits).client == "nobody"
    assert "No client has sent a request yet." in ctl("limits").stdout


# --- cancel


@pytest.fixture
def of_alice(answers: Answers) -> dict[str, int]:
    """What alice has, and what is left of it after a cancel."""
    has = {"jobs": 3}

    def end(request: Request) -> dict[str, Any]:
        assert isinstance(request, control.Cancel) and request.client == "alice"
        count, has["jobs"] = has["jobs"], 0
        return {"cancelled": count, "jobs": [f"j{n}" for n in range(count)]}

    answers["queue"] = lambda _: {"clients": [client_row("uid:1000", "alice", has["jobs"])] if has["jobs"] else []}
    answers["cancel"] = end
    return has


def test_many_jobs_are_not_cancelled_without_a_yes(ctl: Ctl, of_alice: dict[str, int]) -> None:
    refused: Result = ctl("cancel", "--client", "alice")
    assert refused.exit_code == 2
    assert "3 jobs of alice would be cancelled" in refused.stderr and "--yes" in refused.stderr
    assert json.loads(ctl("cancel", "--client", "alice", "--json").stdout)["error"]["code"] == "usage"
    assert of_alice["jobs"] == 3
    assert ctl("cancel", "--client", "alice", "--yes").stdout == "3 jobs of alice cancelled.\n"
    assert "has no waiting or running job" in ctl("cancel", "--client", "alice").stdout


def test_a_single_job_needs_no_yes(ctl: Ctl, of_alice: dict[str, int]) -> None:
    of_alice["jobs"] = 1
    assert ctl("cancel", "--client", "alice").stdout == "1 job of alice cancelled.\n"


@pytest.mark.parametrize(("typed", "status", "left"), [("y\n", 0, 0), ("n\n", 130, 3)])
def test_on_a_terminal_the_person_is_asked(
    daemon: ScriptedDaemon, of_alice: dict[str, int], typed: str, status: int, left: int
) -> None:
    outer, inner = os.openpty()
    command = [*GLMTTSCTL, "cancel", "--client", "alice", "--endpoint", daemon.endpoint]
    os.write(outer, typed.encode())
    done = subprocess.run(command, stdin=inner, capture_output=True, text=True, timeout=30, check=False)
    os.close(inner)
    os.close(outer)
    assert "Cancel 3 jobs of alice?" in done.stderr
    assert (done.returncode, of_alice["jobs"]) == (status, left)


def test_one_job_that_is_not_there_keeps_no_other_from_being_cancelled(ctl: Ctl, daemon: ScriptedDaemon) -> None:
    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        if isinstance(request, Cancel) and request.job == "j2":
            daemon.send(
                peer, events.Error.of(request.id, ErrorCode.JOB_NOT_FOUND, "job: there is no job 'j2' of yours")
            )
        else:
            daemon.send(peer, events.Result(id=request.id, values={"state": "cancelled"}))

    daemon.script = script
    result: Result = ctl("cancel", "j1", "j2", "j3")
    assert result.exit_code == 1
    assert result.stdout == "j1: cancelled\nj3: cancelled\n"
    assert "no job 'j2' of yours" in result.stderr
    states = json.loads(ctl("cancel", "j1", "j2", "--json").stdout)["jobs"]
    assert [state.get("state") or state["error"] for state in states] == ["cancelled", "job_not_found"]


def test_cancel_wants_jobs_or_a_client() -> None:
    for arguments in ([], ["j1", "--client", "alice"]):
        assert CliRunner().invoke(main, ["cancel", *arguments]).exit_code == 2


# --- jobs


def test_jobs_of_a_client_are_found_by_its_user_or_its_key(ctl: Ctl, control_daemon: ScriptedDaemon) -> None:
    jobs = [
        events.JobInfo(
            job=f"j{n}", state="waiting", priority="batch", created=1e9, attempts=0, text_length=1,
            client=f"uid:{n % 2}", user="anna" if n % 2 else "bela", durable=True,
        )
        for n in range(6)
    ]  # fmt: skip
    control_daemon.script = lambda d, peer, request, _: d.send(peer, events.JobsAnswer(id=request.id, jobs=jobs))
    for name in ("anna", "uid:1"):
        found = json.loads(ctl("jobs", "--client", name, "--state", "waiting", "--limit", "2", "--json").stdout)["jobs"]
        assert [job["job"] for job in found] == ["j1", "j3"]
        assert found[0]["durable"] is True
        assert control_daemon.next_of(ListJobs).state == "waiting"
    table = ctl("jobs", "--all").stdout
    assert "USER" in table and "DURABLE" in table and "bela" in table


def test_a_suspended_job_and_a_failed_one_are_told_from_others() -> None:
    assert state_of({"state": "running", "suspended": True}) == "suspended"
    assert state_of({"state": "waiting", "alone": True}) == "waiting (alone)"
    assert state_of({"state": "failed", "code": "worker_crashed"}) == "failed (worker_crashed)"
    assert state_of({"state": "cancelled", "code": "cancelled"}) == "cancelled"
