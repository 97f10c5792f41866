"""`glmttsctl logs` finds the daemon's last lines, each once, in bounded memory."""

from __future__ import annotations

from typing import Any

import msgspec

from glmtts.daemon.log.recent import RecentLines
from glmtts.protocol.control import Logs


def asked(**keys: int | str) -> Logs:
    return msgspec.convert({"id": "r", "v": 1, **keys}, Logs)


def filled(count: int, most: int = 100) -> RecentLines:
    recent = RecentLines(most)
    for number in range(1, count + 1):
        recent.add(float(number), "info", f"line {number}", {"job": f"b-{number % 3}", "worker": f"w{number % 2}"})
    return recent


def numbers(answer: dict[str, Any]) -> list[int]:
    return [line["number"] for line in answer["lines"]]


def test_the_last_lines_come_in_their_order() -> None:
    answer = filled(250).describe(asked(limit=3))
    assert (numbers(answer), answer["newest"], answer["lost"]) == ([248, 249, 250], 250, 0)
    assert numbers(filled(2).describe(asked())) == [1, 2]
    assert filled(0).describe(asked()) == {"lines": [], "newest": 0, "lost": 0}


def test_a_follower_gets_each_line_once_and_the_number_of_lost_ones() -> None:
    recent = filled(250)
    seen, after = [], 145
    while numbers(answer := recent.describe(asked(after=after, limit=40))):
        assert answer["lost"] == (5 if after == 145 else 0)
        seen += numbers(answer)
        after = answer["newest"]
    assert seen == list(range(151, 251))


def test_a_follower_of_one_job_is_not_held_up_by_the_lines_of_others() -> None:
    answer = filled(90).describe(asked(after=80, job="b-0"))
    assert (numbers(answer), answer["newest"]) == ([81, 84, 87, 90], 90)
    assert filled(90).describe(asked(after=89, job="b-1"))["newest"] == 90


def test_lines_are_found_by_worker_by_the_worker_that_it_replaces_and_by_level() -> None:
    recent = RecentLines(10)
    recent.add(1.0, "info", "spare is loaded first", {"worker": "w1", "replaces": "w0"})
    recent.add(2.0, "debug", "job started", {"worker": "w0"})
    recent.add(3.0, "error", "worker can't be started", {"worker": "w2"})
    assert numbers(recent.describe(asked(worker="w0"))) == [1, 2]
    assert numbers(recent.describe(asked(level="warning"))) == [3]


def test_long_values_are_cut_and_a_long_answer_is_given_in_parts() -> None:
    recent = RecentLines(1_000)
    for _ in range(500):
        recent.add(1.0, "info", "m", {"line": "x" * 9_000, "many": ["y" * 9_000] * 900})
    answer = recent.describe(asked(limit=500))
    assert 1 <= len(answer["lines"]) < 20 and numbers(answer)[-1] == 500
    seen, after = 0, 0
    while part := recent.describe(asked(after=after, limit=500))["lines"]:
        seen, after = seen + len(part), part[-1]["number"]
        assert sum(len(str(line)) for line in part) < 500_000
    assert seen == 500


def test_a_client_that_floods_the_log_drives_out_its_own_lines() -> None:
    recent = RecentLines(100)
    recent.add(1.0, "error", "worker died", {"worker": "w0"})
    recent.add(2.0, "warning", "job ended in an error", {"client": "uid:3"})
    for number in range(1_000):
        recent.add(3.0, "info", f"cancelled {number}", {"client": f"uid:2/customer {number}"})
    answer = recent.describe(asked(limit=500))
    assert numbers(answer) == [1, 2, *range(905, 1_003)]
    followed = recent.describe(asked(after=0, limit=500))
    assert (followed["lost"], followed["newest"]) == (902, 1_002)
