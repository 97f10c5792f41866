"""Worlds for the core's tests; tests/support/ has them."""

from __future__ import annotations

import pytest

from glmtts.daemon.core.jobs import queue

from ..support import core_world, stage
from ..support.core_world import MakeJob, MakeSettings, MakeWorld, World
from ..support.stage import MakeStage


@pytest.fixture
def make_world() -> MakeWorld:
    """Makes a World: ``make_world(2, queue={"max_waiting": 3})``."""
    return World


@pytest.fixture
def make_stage() -> MakeStage:
    """Makes a Stage whose workers are ready: ``make_stage(2, slow=1.5)``."""
    return stage.stage


@pytest.fixture
def make_settings() -> MakeSettings:
    """Makes the settings that a World has: ``make_settings(workers={"hang_timeout_s": 1.0})``."""
    return core_world.settings


@pytest.fixture
def make_job() -> MakeJob:
    """Makes a job that waits."""
    return core_world.waiting_job


@pytest.fixture
def world() -> World:
    """A World whose one worker is ready."""
    world = World()
    world.ready()
    world.forget()
    return world


@pytest.fixture
def no_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes get their shares from the first second on."""
    monkeypatch.setattr(queue, "HEAD_START_S", 0.0)
