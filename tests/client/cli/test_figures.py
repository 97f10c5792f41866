"""Amounts at a glance: a number that is cut, a bar that hides a user or a line that shouts at noise misleads."""

from __future__ import annotations

from glmtts.client.cli.ui.humanize import History, age, growth, memory, memory_bar, part_of, sparkline, vram
from glmtts.client.cli.ui.table import Column, lay_out
from glmtts.client.cli.ui.wrap import cells, clean

GIB = 2**30


def text_of(line: list[tuple[str, str]]) -> str:
    return "".join(text for text, _ in line)


def test_memory_says_how_it_is_known() -> None:
    assert vram(int(8.6 * GIB), "process") == "8.6 GiB (NVML)"
    assert vram(int(8.1 * GIB), "device") == "~8.1 GiB (device)"
    assert vram(int(7.9 * GIB), "torch") == "7.9 GiB (torch)"
    assert vram(None, "process") == vram(5, "none") == vram(None, None) == "-"
    assert (memory(312 * 2**20), memory(None)) == ("312 MiB", "-")
    assert (part_of(13 * GIB, 80 * GIB), part_of(2**20, GIB)) == ("13.0 of 80.0 GiB", "1 MiB of 1.0 GiB")


def test_growth_is_said_and_standing_still_is_not() -> None:
    assert [growth(x) for x in (38.2, 0.42, -3.0, 0.01, None)] == [
        "+38 MiB/job",
        "+0.4 MiB/job",
        "-3.0 MiB/job",
        "",
        "",
    ]


def test_ages_are_narrow() -> None:
    assert [age(s) for s in (45, 720, 12_000, 190_000, None)] == ["45s", "12m", "3h20m", "2d4h", "-"]


def test_whoever_has_memory_is_seen_in_the_bar() -> None:
    bar = text_of(memory_bar(1, 1, 80 * GIB, 20))
    assert (bar.count("█"), bar.count("▒"), bar.count("·")) == (1, 1, 18)
    assert text_of(memory_bar(80, 0, 80, 20)) == "█" * 20
    assert text_of(memory_bar(79, 1, 80, 20)) == "█" * 19 + "▒"
    assert text_of(memory_bar(90, 90, 80, 20)) == "█" * 19 + "▒"
    assert len(text_of(memory_bar(1, 1, 0, 20))) == 20


def test_noise_is_flat_and_a_leak_rises() -> None:
    assert set(sparkline([100, 101, 100, 102], 10)) <= set("▁▂")
    assert sparkline([100.0 + 20 * i for i in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5], 8) == sparkline([], 8) == ""
    assert sparkline([0, 0], 8) == "▁▁"
    assert len(sparkline(list(range(100)), 8)) == 8


def test_hours_of_samples_stay_few_and_keep_their_peaks() -> None:
    history = History(32)
    for i in range(10_000):
        history.add(1_000.0 if i == 4_321 else 1.0)
    assert len(history.values) <= 33
    assert max(history.values) == 1_000.0


def test_a_narrow_screen_loses_columns_and_never_part_of_a_number() -> None:
    columns = [
        Column("name", ["w1", "显存"]),
        Column("vram", ["8.6 GiB (NVML)", "~18.1 GiB (device)"], rank=1),
        Column("age", ["3h20m", "5s"], rank=2, right=True),
        Column("empty", ["-", ""]),
    ]
    wide = [line.plain for line in lay_out(columns, None)]
    assert wide[0] == "NAME  VRAM                  AGE"
    assert len({cells(line) for line in wide}) == 1
    assert lay_out(columns, 25)[1].plain == "w1    8.6 GiB (NVML)"
    assert [line.plain for line in lay_out(columns, 5)] == ["NAME", "w1", "显存"]


def test_a_workers_last_words_move_no_cursor() -> None:
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07ok\r\n\x08显存") == "red ok   显存"
