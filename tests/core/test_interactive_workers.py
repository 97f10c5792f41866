"""Workers that are kept free of batch jobs, so that a sentence finds one at once."""

from __future__ import annotations

import pytest

from glmtts.daemon.core.settings import ClassesSettings, InteractiveSettings
from glmtts.protocol import control, events
from glmtts.protocol import worker as wire

from ..support.stage import MakeStage
from .test_preemption import BOB, CAROL, CHAPTER, DAVE, SENTENCE, chapter


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 1), (4, 3)])
def test_batch_jobs_leave_a_worker_to_others_unless_it_is_the_only_one(
    make_stage: MakeStage, workers: int, batch: int
) -> None:
    stage = make_stage(workers, learn=())
    for number in range(6):
        chapter(stage, CHAPTER + str(number), durable=False)
    assert len(stage.world.messages(wire.SpeakJob)) == batch
    short = stage.world.request(text=SENTENCE, client=BOB)
    assert (stage.world.names(short)[-1] == "started") == (workers > 1)
    stage.run(200.0)
    assert len([1 for _, what, _ in stage.log if what == "ends"]) == 7


def test_a_suspended_batch_job_counts_for_the_worker_that_has_it(make_stage: MakeStage) -> None:
    stage = make_stage(2, learn=())
    chapter(stage, CHAPTER + "0", durable=False)
    for number in range(2):
        stage.world.request(text="s" * 50 + str(number), client=BOB)
    stage.run(0.5)
    chapter(stage, CHAPTER + "1", client=CAROL, durable=False)
    for _ in range(250):
        stage.run(0.1)
        live = stage.world.live
        holding = [w.name for w in stage.world.pool if any(live[id].request.priority == "batch" for id in w.jobs)]
        assert len(holding) <= 1
    assert len([1 for _, what, _ in stage.log if what == "ends"]) == 4


def test_sentences_on_workers_without_batch_jobs_are_not_held_against_them_when_these_are_gone(
    make_stage: MakeStage,
) -> None:
    classes = ClassesSettings(interactive=InteractiveSettings(weight=1))
    queue = {"max_waiting": 100, "max_share": 1.0, "interactive_workers": 2, "classes": classes}
    stage = make_stage(3, queue=queue)
    for number in range(40):
        chapter(stage, f"{number:02}" + CHAPTER, client=BOB)
    # One worker speaks the chapters. The others speak sentences: twice as much.
    for number in range(100):
        for _ in range(2):
            stage.world.request(text=f"{number:10}", client=CAROL)
        stage.run(1.0)
    stage.world.operate(control.Scale, max=1)
    stage.run(20.0)
    sentence = stage.world.request(text=f"{0:10}", client=DAVE)
    stage.run(8.0)
    assert isinstance(stage.world.last(sentence), events.Done)
