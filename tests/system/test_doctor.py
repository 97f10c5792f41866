"""The doctor's patience: what hangs is named, and the doctor does not hang."""

from __future__ import annotations

import json
import time

from ..process.conftest import MakeGpus, Start
from ..process.glmttsctl import ctl


def test_an_nvml_that_hangs_is_found_and_does_not_hang_the_doctor(start: Start, make_fake_gpus: MakeGpus) -> None:
    gpus = make_fake_gpus(8_000, 8_000)
    daemon = start(
        environment=gpus.environment(), engine={"fault": {"vram_mib": 2_000}}, workers={"gpus": "all", "max": 0}
    )
    with gpus.delay("nvmlDeviceGet*", 60.0) as fault:
        fault.until_hit()
        began = time.monotonic()
        doctor = ctl(daemon, "doctor", "--json", **gpus.environment())
        assert time.monotonic() - began < 45.0
        assert doctor.returncode == 1
        checks = json.loads(doctor.stdout)["checks"]
        assert any(check["name"] == "NVML" and "no answer" in check["seen"] for check in checks), checks
