"""The least and the greatest value of every number in the configuration.

Beyond them a number is a typing error, or would keep the daemon from its work: a worker can't beat every nanosecond.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from glmtts.protocol.audio_formats import MAX_RECORDING_MIB, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from glmtts.protocol.control import MAX_WORKERS
from glmtts.protocol.requests import MAX_DEADLINE_S

_HOUR_S, _DAY_S, _YEAR_S = 3_600, 86_400, 366 * 86_400
#: More jobs than these don't fit the memory of any machine.
_JOBS = 1_000_000
_COUNT = 1_000_000_000
#: A list of more voices is longer than a message may be.
_VOICES = 1_000
#: 1 TiB of the host's memory, 16 TiB of disk or of all GPUs.
_HOST_MIB, _DISK_MIB = 1 << 20, 16 << 20


class Range(NamedTuple):
    """From ``least`` to ``most``, and 0 too where that turns something off."""

    least: float
    most: float
    or_zero: bool = False

    def problem(self, value: Any) -> str:
        """The problem of a value, or ``""``; values that are no numbers are judged by their type."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        if self.least <= value <= self.most or (self.or_zero and value == 0):
            return ""
        zero = "0 (off), or " if self.or_zero else ""
        # Python refuses to print integers of thousands of digits.
        huge = isinstance(value, int) and abs(value) >= 2**64
        got = "a number beyond 64 bits" if huge else json.dumps(value) if math.isfinite(value) else str(value)
        return f"expected {zero}a number from {_words(self.least)} to {_words(self.most)}, got {got}"


def _words(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


#: By key; NAME stands for the name of a client.
RANGES: dict[str, Range] = {
    "daemon.drain_timeout_s": Range(0, _DAY_S),
    "engine.fault.slots": Range(1, 64),
    "engine.fault.start_s": Range(0, _DAY_S),
    "engine.fault.vram_mib": Range(0, _DISK_MIB),
    "engine.glmtts.top_k": Range(1, 1_000),
    "engine.glmtts.max_tokens": Range(0, 10_000),
    "engine.glmtts.max_segment_s": Range(1, _DAY_S),
    "engine.glmtts.slots": Range(0, 256),
    "engine.glmtts.voice_cache_mib": Range(0, _HOST_MIB),
    "engine.glmtts.text_processes": Range(1, 4),
    "engine.server.start_timeout_s": Range(0.1, _DAY_S),
    "engine.server.slots": Range(1, 256),
    "engine.server.request_chars": Range(20, 100_000, or_zero=True),
    "engine.server.pcm_rate": Range(MIN_SAMPLE_RATE, MAX_SAMPLE_RATE, or_zero=True),
    "workers.per_gpu": Range(1, MAX_WORKERS),
    "workers.min": Range(0, MAX_WORKERS),
    "workers.max": Range(0, MAX_WORKERS),
    "workers.vram_mib": Range(0, _DISK_MIB),
    "workers.scale_up_wait_s": Range(0, _DAY_S),
    "workers.idle_unload_s": Range(0.1, _YEAR_S, or_zero=True),
    "workers.start_timeout_s": Range(0.1, _DAY_S),
    # A healthy worker beats every few hundred milliseconds.
    "workers.hang_timeout_s": Range(0.5, _DAY_S),
    "workers.stop_timeout_s": Range(0.1, _HOUR_S),
    "workers.recycle.max_jobs": Range(0, _COUNT),
    "workers.recycle.max_age_s": Range(0.1, _YEAR_S, or_zero=True),
    "workers.recycle.max_rss_mib": Range(16, _HOST_MIB, or_zero=True),
    "workers.recycle.max_vram_mib": Range(16, _DISK_MIB, or_zero=True),
    "workers.recycle.max_vram_share": Range(0.01, 1, or_zero=True),
    "workers.recycle.leak_min_mib": Range(0, _HOST_MIB),
    "workers.recycle.leak_horizon_jobs": Range(0, _COUNT),
    "workers.recycle.idle_trim_s": Range(0.1, _YEAR_S, or_zero=True),
    # A crashing worker must not keep a processor busy.
    "workers.restart.backoff_initial_s": Range(0.01, _HOUR_S),
    "workers.restart.backoff_max_s": Range(0.01, _DAY_S),
    "workers.restart.breaker_failures": Range(1, _COUNT),
    "workers.restart.breaker_window_s": Range(0.1, _DAY_S),
    "workers.restart.quarantine_after": Range(0, 1_000),
    "workers.restart.quarantine_s": Range(0.1, _YEAR_S),
    "workers.restart.max_attempts": Range(1, 1_000),
    "queue.max_waiting": Range(0, _JOBS),
    "queue.max_waiting_batch": Range(0, _JOBS),
    "queue.warn_waiting": Range(0, _JOBS),
    "queue.max_per_client": Range(1, _JOBS),
    "queue.max_share": Range(0.001, 1),
    "queue.interactive_workers": Range(0, MAX_WORKERS),
    "queue.default_deadline_s": Range(0.1, MAX_DEADLINE_S, or_zero=True),
    "queue.keep_results_s": Range(0, _YEAR_S),
    "queue.keep_results_mib": Range(0, _HOST_MIB),
    # A client must have the time to come back.
    "queue.keep_durable_s": Range(1, 10 * _YEAR_S),
    "queue.keep_durable_mib": Range(0, _DISK_MIB),
    "queue.classes.vip.weight": Range(1, 1_000),
    "queue.classes.interactive.weight": Range(1, 1_000),
    "queue.classes.batch.weight": Range(1, 1_000),
    "limits.clients.NAME.max_jobs": Range(1, _JOBS),
    "limits.clients.NAME.max_share": Range(0.001, 1),
    "limits.clients.NAME.own_voices": Range(0, _VOICES),
    "limits.text_chars": Range(1, 100_000),
    "limits.text_timeout_s": Range(0.1, _DAY_S),
    "limits.open_texts": Range(0, _JOBS),
    "limits.header_kib": Range(4, 1_024),
    "limits.body_mib": Range(1, MAX_RECORDING_MIB),
    "limits.recordings_mib": Range(1, _HOST_MIB),
    "limits.recording_min_s": Range(0.01, _HOUR_S),
    "limits.recording_max_s": Range(0.01, _HOUR_S),
    "limits.send_buffer_mib": Range(1, _HOST_MIB),
    "limits.max_connections": Range(1, _JOBS),
    "limits.outputs_mib": Range(0, _DISK_MIB),
    "limits.disk_reserve_mib": Range(0, _DISK_MIB),
    "limits.usage_days": Range(0, 366),
    "limits.own_voices": Range(0, _VOICES),
    "limits.own_voices_mib": Range(1, _DISK_MIB),
    "audio.sample_rate": Range(MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
    "alerts.gpu_memory_share": Range(0.01, 1),
    "alerts.response_s": Range(0.1, _DAY_S),
    "alerts.error_share": Range(0.001, 1),
    "alerts.rtf": Range(0.001, 1_000),
    "alerts.faults": Range(1, _COUNT),
    "alerts.window_s": Range(1, _YEAR_S),
    "alerts.for_s": Range(0.1, _DAY_S),
}
