"""A wall clock that is set, in whatever way and at whatever time, takes no result and no key from anyone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from glmtts.daemon.core import inputs
from glmtts.daemon.storage.timeline import GRACE_S, Timeline

from .journal_rig import DAY_S, Rig, row

T0 = 1e9


class Machine:
    """A machine that can be suspended, switched off, and whose clock can be set."""

    def __init__(self) -> None:
        self.wall, self.boot_s, self.boot = T0, 100.0, "first"

    def passes(self, seconds: float) -> None:
        """Time passes, with the machine suspended or not."""
        self.wall += seconds
        self.boot_s += seconds

    def off(self, seconds: float) -> None:
        """The machine is off for so long."""
        self.wall += seconds
        self.boot_s, self.boot = 5.0, self.boot + "+"

    def timeline(self) -> Timeline:
        return Timeline(lambda: self.wall, lambda: self.boot_s, lambda: self.boot)

    def rig(self, folder: Path) -> Rig:
        return Rig(folder, timeline=self.timeline())


@pytest.fixture
def machine() -> Machine:
    return Machine()


def keep(rig: Rig, folder: Path, machine: Machine, job: str = "a-1") -> Path:
    """A job that is done, with a key and a result that is kept for a day."""
    file = folder / "results" / job
    file.write_bytes(b"RIFF")
    assert rig.add(row(job, key=f"k of {job}", created=machine.wall)).known is None
    assert rig.end(job, result=str(file), keep_s=DAY_S).problem == ""
    return file


def holds(rig: Rig, machine: Machine, job: str = "a-1") -> bool:
    """Whether the key stands for the job, and its row has the result, after a look at what has expired."""
    rig.add(row(f"another-{machine.boot_s}", created=machine.wall))
    known = rig.add(row(f"b-{machine.boot_s}", key=f"k of {job}", created=machine.wall)).known
    found = rig.found(job)
    assert (known is None) == (found is None)
    return found is not None and Path(found.result).exists()


@pytest.mark.parametrize("by_s", [3 * DAY_S, -3 * DAY_S, 20 * 365 * DAY_S, -20 * 365 * DAY_S])
def test_a_clock_that_is_set_removes_nothing_and_results_still_go_after_their_time(
    tmp_path: Path, machine: Machine, by_s: float
) -> None:
    with machine.rig(tmp_path) as rig:
        before = keep(rig, tmp_path, machine)
        machine.wall += by_s
        machine.passes(120)
        assert holds(rig, machine)
        after = keep(rig, tmp_path, machine, "a-2")
        machine.passes(DAY_S - 60)
        assert not holds(rig, machine) and not before.exists() and after.exists()


def test_a_clock_that_is_wrong_for_a_minute_removes_nothing_over_restarts_either(
    tmp_path: Path, machine: Machine
) -> None:
    with machine.rig(tmp_path) as rig:
        keep(rig, tmp_path, machine)
        machine.wall += 2 * DAY_S
        machine.passes(60)
        assert holds(rig, machine)
    with machine.rig(tmp_path) as rig:
        assert holds(rig, machine)
        assert not rig.warnings
        machine.wall -= 2 * DAY_S
    machine.passes(10)
    with machine.rig(tmp_path) as rig:
        assert holds(rig, machine)
        assert any("was set by -172800 s while no daemon ran" in line for line in rig.warnings), rig.warnings


def test_a_machine_that_was_suspended_lets_results_go_at_once(tmp_path: Path, machine: Machine) -> None:
    with machine.rig(tmp_path) as rig:
        keep(rig, tmp_path, machine)
        machine.passes(7 * DAY_S)
        assert not holds(rig, machine)


def test_a_machine_that_was_off_for_a_week_lets_results_go_an_hour_after_its_start(
    tmp_path: Path, machine: Machine
) -> None:
    with machine.rig(tmp_path) as rig:
        keep(rig, tmp_path, machine)
    machine.off(7 * DAY_S)
    with machine.rig(tmp_path) as rig:
        assert holds(rig, machine)
        assert any("was off for 604800 s" in line for line in rig.warnings), rig.warnings
        machine.passes(GRACE_S - 1)
        assert holds(rig, machine)
        machine.passes(2)
        assert not holds(rig, machine)


def test_a_machine_that_starts_with_a_clock_that_is_ahead_loses_nothing_when_that_is_put_right(
    tmp_path: Path, machine: Machine
) -> None:
    with machine.rig(tmp_path) as rig:
        keep(rig, tmp_path, machine)
    machine.off(60.0)
    machine.wall += 2 * DAY_S
    with machine.rig(tmp_path) as rig:
        assert holds(rig, machine)
        machine.passes(30)
        machine.wall -= 2 * DAY_S
        rig.add(row("a-2", created=machine.wall))
        machine.passes(GRACE_S + 60)
        assert holds(rig, machine)


def test_a_machine_without_a_battery_starts_in_the_past_and_loses_nothing_when_that_is_put_right(
    tmp_path: Path, machine: Machine
) -> None:
    with machine.rig(tmp_path) as rig:
        keep(rig, tmp_path, machine)
    machine.off(60.0)
    machine.wall -= 30 * 365 * DAY_S
    with machine.rig(tmp_path) as rig:
        after = keep(rig, tmp_path, machine, "a-2")
        machine.passes(30)
        machine.wall += 30 * 365 * DAY_S
        machine.passes(2 * GRACE_S)
        assert holds(rig, machine) and after.exists()
        found = rig.found("a-2")
        assert found is not None and found.created == pytest.approx(machine.wall - 2 * GRACE_S - 30, abs=1.0)


def test_a_deadline_goes_on_by_the_machine_s_count_and_over_a_time_when_it_was_off(
    tmp_path: Path, machine: Machine
) -> None:
    with machine.rig(tmp_path) as rig:
        rig.add(row("a-1", created=machine.wall, deadline_in_s=600.0))
        machine.wall += 3 * DAY_S
        machine.passes(100)
    machine.wall -= DAY_S
    with machine.rig(tmp_path) as rig:
        assert [job.deadline_in_s for job in rig.opened.rows] == [pytest.approx(500.0)]
        assert [job.age_s for job in rig.opened.rows] == [pytest.approx(100.0)]
    machine.off(1_000.0)
    with machine.rig(tmp_path) as rig:
        assert [job.deadline_in_s for job in rig.opened.rows] == [pytest.approx(-500.0)]


def test_a_job_that_was_accepted_as_the_clock_was_set_holds_its_key_for_a_day(tmp_path: Path, machine: Machine) -> None:
    with machine.rig(tmp_path) as rig:
        machine.wall += 3 * DAY_S
        rig.add(row("a-1", key="k", created=machine.wall - 3 * DAY_S))
        machine.passes(60)
        assert rig.add(row("a-2", key="k", created=machine.wall)).known == ("a-1", "content of a-1")


def test_a_journal_of_an_earlier_version_goes_on_from_its_newest_job(tmp_path: Path, machine: Machine) -> None:
    with machine.rig(tmp_path) as rig:
        keep(rig, tmp_path, machine)
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("DELETE FROM clock")
    connection.close()
    machine.wall += 2 * DAY_S
    with machine.rig(tmp_path) as rig:
        assert isinstance(rig.opened, inputs.JournalChanged)
        rig.add(row("a-2", created=machine.wall))
        assert rig.found("a-1") is not None, "the clock may be wrong"
