"""What tests of every kind may ask for: GPUs on machines that have none (see tests/fake_gpu/fake_gpu.py).

Hypothesis runs without limits of time, because a busy machine is no failure, and with the means to repeat.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .fake_gpu.fake_gpu import CannotBuildError, FakeGpus, build

settings.register_profile("glmtts", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("glmtts")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in a shell's background job, and the programs that the tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_fake_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., FakeGpus]]:
    """Makes GPUs by their memory in MiB: ``make_fake_gpus(24_576, 24_576)``. Skips where they can't be built."""
    try:
        build()
    except CannotBuildError as error:
        pytest.skip(str(error))
    made: list[FakeGpus] = []

    def make(*total_mib: int) -> FakeGpus:
        made.append(FakeGpus(*total_mib, folder=Path(tmp_path_factory.mktemp("gpus"))))
        return made[-1]

    yield make
    for gpus in made:
        gpus.close()


@pytest.fixture
def fake_gpus(make_fake_gpus: Callable[..., FakeGpus]) -> FakeGpus:
    """One GPU of 24 GiB, without MIG."""
    return make_fake_gpus(24_576)
