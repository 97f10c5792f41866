"""`logs` of a name that is wrong: an empty answer would look as if all were well."""

from __future__ import annotations

from ..scripted_daemon import Answers
from .conftest import Ctl

LINE = {"number": 1, "time": 1e9, "level": "info", "message": "a worker is ready", "fields": {"worker": "w0"}}


def test_a_worker_of_which_nothing_is_kept_is_told_with_those_that_there_are(ctl: Ctl, answers: Answers) -> None:
    answers["logs"] = {"lines": [], "newest": 0, "pid": 1}
    answers["workers"] = {"workers": [{"name": "w0"}, {"name": "w1"}]}
    result = ctl("logs", "--worker", "w9")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "The daemon keeps no line about worker w9. There are these workers: w0, w1.\n"
    answers["workers"] = {"workers": []}
    assert "There is no worker now." in ctl("logs", "--worker", "w9", "--level", "error").stderr


def test_a_job_or_a_level_of_which_nothing_is_kept_is_told(ctl: Ctl, answers: Answers) -> None:
    answers["logs"] = {"lines": [], "newest": 0, "pid": 1}
    assert ctl("logs", "--job", "nope").stderr == "The daemon keeps no line about job nope.\n"
    said = ctl("logs", "--job", "nope", "--level", "error", "--json")
    assert (said.stdout, said.stderr) == ("", "The daemon keeps no line of level error or above about job nope.\n")
    assert ctl("logs", "--job", "nope", "-q").stderr == ""


def test_nothing_is_said_where_lines_are_shown_or_none_were_wanted(ctl: Ctl, answers: Answers) -> None:
    answers["logs"] = {"lines": [LINE], "newest": 1, "pid": 1}
    result = ctl("logs", "--worker", "w0")
    assert "a worker is ready" in result.stdout and result.stderr == ""
    answers["logs"] = {"lines": [], "newest": 1, "pid": 1}
    assert ctl("logs", "--worker", "w0", "-n", "0").stderr == ""
