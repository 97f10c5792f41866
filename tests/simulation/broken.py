"""Cores that are broken on purpose, and the rule that each of them breaks: the simulation has to notice every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from . import broken_blame as blame
from . import broken_clocks as clocks
from . import broken_jobs as jobs
from . import broken_pieces as pieces
from . import broken_queue as queue
from . import broken_workers as workers
from .accidents import Scene
from .rules import Rule


@dataclass(frozen=True)
class BrokenCore:
    """What is broken, the rule that has to be named for it, and the lives in which that can show."""

    rule: Rule
    break_it: Callable[[pytest.MonkeyPatch], None]
    jobs: int = 300
    shows_in: Callable[[Scene], bool] = lambda _: True
    #: Accidents without which it shows sooner.
    without: tuple[str, ...] = ()
    #: Whether a client floods the tables that all share.
    floods: bool = False
    #: The seed of the first life. It shows in few lives, and at the time of writing in this one: to begin there saves
    #: seconds, and when lives change, the search goes on from there.
    first: int = 0

    def __str__(self) -> str:
        return f"{self.rule:d}-{self.break_it.__name__}"


def _many_gpus(scene: Scene) -> bool:
    return scene.gpus > 0 and scene.trust == "process" and scene.nvml == "ok"


def _with_ends(scene: Scene) -> bool:
    return scene.journal and scene.daemon_ends > 0


def _violent(scene: Scene) -> bool:
    return scene.journal and scene.violence == 1.0


def _with_rates(scene: Scene) -> bool:
    return bool(scene.settings.limits.rate)


def _puts_aside(scene: Scene) -> bool:
    return scene.settings.queue.preempt and scene.slots == 1


#: Jobs that hang are long, and a reload changes the weights.
_CALM = ("bad_jobs", "crashes", "killers", "reloads")


def _crowded(scene: Scene) -> bool:
    settings = scene.settings
    alike = settings.queue.classes.interactive.weight == settings.queue.classes.batch.weight
    unlimited = settings.queue.max_waiting >= 8 and not settings.limits.rate
    return scene.rush > 1 and alike and unlimited and not settings.queue.interactive_workers and not scene.brief


def _unlike(scene: Scene) -> bool:
    classes, queue = scene.settings.queue.classes, scene.settings.queue
    return scene.rush > 1 and classes.batch.weight > classes.interactive.weight and not queue.interactive_workers


def _with_clocks(scene: Scene) -> bool:
    return scene.clocks and not scene.bugs


def _with_clocks_and_ends(scene: Scene) -> bool:
    return scene.clocks and scene.journal and 0 < scene.daemon_ends <= 5


def _with_bugs(scene: Scene) -> bool:
    return scene.bugs > 0.01


def _repeats(scene: Scene) -> bool:
    return scene.repeats


def _does_not_repeat(scene: Scene) -> bool:
    return not scene.repeats


def _with_pieces(scene: Scene) -> bool:
    return scene.pieces


def _many_at_once(scene: Scene) -> bool:
    return scene.slots > 1 and scene.violence == 1.0 and not scene.bugs


BROKEN = [
    BrokenCore(Rule.ONE_END, jobs.done_twice),
    BrokenCore(Rule.ONE_END, jobs.jobs_of_the_dead_forgotten, first=1),
    BrokenCore(Rule.ONE_END, jobs.never_restarted, first=1),
    BrokenCore(Rule.ONE_END, jobs.hangs_go_unnoticed),
    BrokenCore(Rule.ONE_END, jobs.a_beat_that_stands_still_counts, first=9),
    BrokenCore(Rule.ONE_END, jobs.deadlines_forgotten),
    BrokenCore(Rule.ONE_END, jobs.put_aside_and_forgotten),
    BrokenCore(Rule.ONE_END, jobs.effects_lost_with_an_error, shows_in=_with_bugs, first=26),
    BrokenCore(Rule.ONE_END, jobs.lost_by_a_bug_and_forgotten, shows_in=_with_bugs, first=51),
    BrokenCore(Rule.ROOM, jobs.workers_lost_by_a_bug_and_forgotten, shows_in=_with_bugs, first=39),
    BrokenCore(Rule.ONE_END, jobs.the_rest_of_a_step_lost_with_an_error, shows_in=_with_bugs, first=26),
    BrokenCore(Rule.ONE_END, jobs.failed_effects_ignored, shows_in=_with_bugs, first=26),
    BrokenCore(Rule.ONE_END, pieces.texts_without_end_waited_for, shows_in=_with_pieces),
    BrokenCore(
        Rule.ONE_END, pieces.text_that_crosses_the_news_of_its_lack_forgotten, shows_in=_with_pieces, without=("bugs",)
    ),
    BrokenCore(Rule.OUTPUT_ONCE, pieces.pieces_spoken_twice, shows_in=_with_pieces, without=("bugs",)),
    BrokenCore(Rule.ORDER, jobs.gone_on_with_and_still_aside),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.accepted_before_it_is_on_disk),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.ended_before_that_is_on_disk),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.a_recovered_job_is_forgotten, shows_in=_with_ends, first=5),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.attempts_of_the_last_daemon_not_counted, shows_in=_with_ends, first=5),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.ended_jobs_spoken_again),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.outputs_settled_too_early, shows_in=_violent, first=41),
    BrokenCore(Rule.OUTPUT_ONCE, jobs.output_of_another_attempt),
    BrokenCore(Rule.OUTPUT_ONCE, clocks.results_are_dated_by_the_clock_of_the_start, shows_in=_with_clocks, first=7),
    BrokenCore(Rule.ONE_END, clocks.deadlines_stand_still_with_the_daemon, shows_in=_with_clocks, first=11),
    BrokenCore(Rule.ONE_END, clocks.deadlines_follow_the_wall_clock, jobs=600, shows_in=_with_clocks_and_ends, first=5),
    BrokenCore(Rule.QUARANTINE, clocks.standstills_count_for_workers, shows_in=_with_clocks, first=21),
    BrokenCore(Rule.OWN_AUDIO, jobs.audio_of_another),
    BrokenCore(Rule.OWN_AUDIO, jobs.voices_of_anybody),
    BrokenCore(Rule.BOUNDED, jobs.voices_without_an_end, first=2),
    BrokenCore(Rule.BOUNDED, jobs.voices_of_one_take_all_the_room),
    BrokenCore(Rule.BOUNDED, jobs.voices_of_one_customer_take_all_of_its_gateway, first=2),
    BrokenCore(Rule.ONE_END, jobs.a_change_of_voices_cut_short_holds_up_the_next, shows_in=_with_bugs, first=55),
    BrokenCore(Rule.OWN_AUDIO, jobs.stream_to_whoever_waits),
    BrokenCore(Rule.OWN_AUDIO, jobs.results_for_everybody, shows_in=_with_ends, first=3),
    BrokenCore(Rule.ROOM, workers.two_processes_in_one_place),
    BrokenCore(Rule.ROOM, workers.started_without_room, shows_in=_many_gpus),
    BrokenCore(Rule.ROOM, workers.started_before_memory_is_back, shows_in=_many_gpus, first=10),
    BrokenCore(Rule.ROOM, workers.those_that_load_not_counted, shows_in=_many_gpus, first=5),
    BrokenCore(Rule.ROOM, workers.more_workers_than_may_be, shows_in=lambda scene: scene.gapless),
    BrokenCore(Rule.QUARANTINE, queue.no_quarantine, first=4),
    BrokenCore(Rule.QUARANTINE, queue.the_healthy_quarantined, first=1),
    BrokenCore(Rule.QUARANTINE, blame.all_are_blamed, shows_in=_many_at_once),
    BrokenCore(Rule.QUARANTINE, blame.none_is_blamed, shows_in=_many_at_once, first=89),
    BrokenCore(Rule.QUARANTINE, blame.the_first_of_a_note_is_blamed, shows_in=_many_at_once),
    BrokenCore(Rule.QUARANTINE, blame.a_note_is_not_read, shows_in=_many_at_once),
    BrokenCore(Rule.QUARANTINE, blame.suspects_are_not_excused, shows_in=_many_at_once),
    BrokenCore(Rule.QUARANTINE, blame.suspects_stay_together, shows_in=_many_at_once),
    BrokenCore(Rule.QUARANTINE, blame.alone_is_not_honoured, shows_in=_many_at_once, first=31),
    BrokenCore(Rule.ONE_END, blame.notes_are_never_heard_of, shows_in=_many_at_once),
    BrokenCore(Rule.QUARANTINE, queue.those_aside_are_blamed, jobs=1_000, shows_in=_puts_aside, first=1),
    BrokenCore(Rule.FAIR, queue.batch_starves, jobs=1_000, shows_in=_crowded, without=_CALM, first=160),
    BrokenCore(Rule.FAIR, queue.weights_ignored, shows_in=_unlike, without=_CALM, first=43),
    BrokenCore(Rule.FAIR, queue.a_book_is_served_first, first=9),
    BrokenCore(Rule.FAIR, queue.jobs_counted_for_time, jobs=1_000, without=_CALM),
    BrokenCore(Rule.FAIR, queue.never_put_aside, shows_in=_puts_aside),
    BrokenCore(Rule.FAIR, queue.deadlines_ignored_in_the_order),
    BrokenCore(Rule.ONE_END, queue.given_up_though_there_is_time),
    BrokenCore(Rule.BOUNDED, queue.results_never_dropped),
    BrokenCore(Rule.BOUNDED, queue.queue_without_an_end),
    BrokenCore(Rule.BOUNDED, queue.rates_of_connections, shows_in=_with_rates),
    BrokenCore(Rule.BOUNDED, queue.rates_forgotten_by_a_reload, shows_in=_with_rates, first=4),
    BrokenCore(Rule.BOUNDED, queue.customers_take_what_their_gateway_has_not),
    BrokenCore(Rule.BOUNDED, queue.as_many_aside_as_it_takes, shows_in=_puts_aside),
    BrokenCore(Rule.BOUNDED, workers.processes_never_forgotten),
    BrokenCore(Rule.NO_SPIN, workers.restarted_without_a_pause, first=1),
    BrokenCore(Rule.NO_SPIN, workers.breaker_never_opens, first=5),
    BrokenCore(Rule.NO_SPIN, workers.breaker_is_not_asked, first=5),
    BrokenCore(Rule.NO_SPIN, workers.recycles_count_as_faults),
    BrokenCore(Rule.NO_SPIN, workers.samples_ask_for_samples, shows_in=_many_gpus, first=10),
    BrokenCore(Rule.ORDER, queue.work_not_counted_back),
    BrokenCore(Rule.NO_IDLENESS, blame.slots_stay_empty, shows_in=_many_at_once),
    BrokenCore(Rule.ORDER, jobs.streams_go_on_whatever_makes_them, shows_in=_does_not_repeat, first=3),
    BrokenCore(Rule.ORDER, jobs.two_bytes_of_a_stream_doubled, shows_in=_repeats, first=1),
    BrokenCore(Rule.NO_IDLENESS, queue.idle_while_jobs_wait),
    BrokenCore(
        Rule.LEAK_SEEN, workers.leaks_not_seen, jobs=1_500, shows_in=lambda scene: scene.leak_must_be_seen, first=105
    ),
    BrokenCore(Rule.SHARES, queue.the_oldest_row_goes, jobs=150, floods=True),
    BrokenCore(Rule.SHARES, queue.customers_are_owners, jobs=150, floods=True),
    BrokenCore(Rule.NO_GAP, workers.recycled_without_a_spare, shows_in=lambda scene: scene.gapless),
]
