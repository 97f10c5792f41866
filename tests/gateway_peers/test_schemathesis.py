"""Schemathesis makes requests of ``/openapi.json``, right and wrong, and looks for an answer that it does not name."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..process.conftest import Daemon
from ..support.gateways import Gateway, keys_for

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
PROGRAM = Path(sys.executable).with_name("schemathesis")


#: The answer to a deadline that can't be met, and while the daemon is away.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
[checks.use_after_free]
enabled = false  # DELETE cancels a job: one that has ended stays
[[operations]]
include-name = "POST /v1/audio/voices"
checks.positive_data_acceptance.enabled = false  # no schema makes a recording
[[operations]]
include-name = "GET /v1/audio/speech/stream"
checks.positive_data_acceptance.enabled = false  # a WebSocket
"""


@pytest.mark.timeout(400)
def test_schemathesis_finds_nothing(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    keys, headers = keys_for(tmp_path, "anna")
    with contextlib.closing(Gateway(daemon, tmp_path, f'api_keys = "{keys}"\n')) as gateway:
        done = subprocess.run(
            [
                *(
                    PROGRAM,
                    "run",
                    f"http://127.0.0.1:{gateway.port}/openapi.json",
                    "--continue-on-failure",
                    "--no-color",
                ),
                *("--max-examples", "15", "--seed", "1"),
                *("--header", f"Authorization: {headers['anna']['Authorization']}"),
            ],
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": HOOKS.stem, "PYTHONPATH": str(HOOKS.parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=380,
            check=False,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert "Traceback" not in gateway.log_file.read_text()
