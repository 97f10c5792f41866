"""For each key of the configuration: whether a change applies at once, needs fresh processes, or needs a restart.

A key stands here by its full path, so that a new one must be thought about: a test compares them with the settings.
Keys that the configuration's rules compare with each other are of one class: applying one of them alone could make what
would have been refused in a file. After SIGHUP or ``glmttsctl reload`` api/operator_requests.py applies the plan.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from .settings import Settings, flat

#: ``live``: it holds from the next decision on. ``workers``: processes are started with it, so each is replaced by one
#: that has the new value, a spare first where it fits. ``restart``: it is held back until the daemon is started again.
Way = Literal["live", "workers", "restart"]


def _keys(text: str) -> list[str]:
    return text.split()


_LIVE = _keys("""
daemon.log_level daemon.log_format daemon.drain_timeout_s
workers.per_gpu workers.min workers.max workers.vram_mib workers.scale_up_wait_s workers.idle_unload_s
engine.server.start_timeout_s
workers.start_timeout_s workers.hang_timeout_s workers.stop_timeout_s
workers.recycle.max_jobs workers.recycle.max_age_s workers.recycle.max_rss_mib workers.recycle.leak_min_mib
workers.recycle.leak_horizon_jobs workers.recycle.idle_trim_s
workers.restart.backoff_initial_s workers.restart.backoff_max_s workers.restart.breaker_failures
workers.restart.breaker_window_s workers.restart.quarantine_after workers.restart.quarantine_s
workers.restart.max_attempts
queue.max_waiting queue.max_waiting_batch queue.warn_waiting queue.max_per_client queue.max_share queue.preempt
queue.interactive_workers queue.default_deadline_s queue.keep_results_s queue.keep_results_mib queue.keep_durable_s
queue.keep_durable_mib
queue.classes.vip.weight queue.classes.vip.users queue.classes.interactive.weight queue.classes.interactive.users
queue.classes.batch.weight queue.classes.batch.users
limits.rate limits.rate_batch limits.clients limits.gateways limits.outputs_mib limits.disk_reserve_mib
limits.usage_days
limits.own_voices limits.own_voices_mib
limits.text_timeout_s limits.open_texts
audio.sample_rate audio.default_format
voices.default
alerts.gpu_memory_share alerts.response_s alerts.error_share alerts.rtf alerts.faults alerts.window_s alerts.for_s
tcp.authorised_keys
""")

_WORKERS = _keys("""
engine.python engine.warmup_text engine.confine
engine.fault.start engine.fault.start_s engine.fault.vram_mib engine.fault.slots
engine.glmtts.root engine.glmtts.use_phoneme engine.glmtts.use_cache engine.glmtts.sampling engine.glmtts.top_k
engine.glmtts.max_tokens engine.glmtts.max_segment_s engine.glmtts.dictionary engine.glmtts.dtype
engine.glmtts.batching engine.glmtts.slots engine.glmtts.flow_precision engine.glmtts.stream
engine.glmtts.voice_cache_mib
engine.glmtts.text_processes
engine.server.api engine.server.command engine.server.url engine.server.slots engine.server.voices
engine.server.ref_audio engine.server.request_chars engine.server.model engine.server.pcm_rate engine.server.extra
engine.server.api_key_file
workers.recycle.max_vram_mib workers.recycle.max_vram_share
limits.recording_min_s limits.recording_max_s
""")

_RESTART = _keys("""
daemon.runtime_dir daemon.state_dir daemon.socket_mode daemon.socket_group daemon.admin_group
engine.name
workers.gpus
limits.text_chars limits.header_kib limits.body_mib limits.recordings_mib limits.send_buffer_mib limits.max_connections
audio.outputs
voices.folder
metrics.listen
tcp.listen tcp.server_key
""")

WAYS: dict[str, Way] = (
    dict.fromkeys(_LIVE, "live") | dict.fromkeys(_WORKERS, "workers") | dict.fromkeys(_RESTART, "restart")  # type: ignore[assignment]  # the words widen to str
)


class Plan(NamedTuple):
    """What follows from a new configuration: the settings from now on, and the changed keys by what each takes."""

    settings: Settings
    live: list[str]
    workers: list[str]
    restart: list[str]


def plan(old: Settings, new: Settings) -> Plan:
    """Compare what holds with what was read, key by key."""
    before, after = flat(old), flat(new)
    changed = [key for key in after if after[key] != before[key]]
    ways: dict[Way, list[str]] = {"live": [], "workers": [], "restart": []}
    for key in changed:
        ways[_way(key, old, changed)].append(key)
    return Plan(merged(old, new, ways["restart"]), ways["live"], ways["workers"], ways["restart"])


def _way(key: str, old: Settings, changed: list[str]) -> Way:
    if key.startswith("engine.") and "engine.name" in changed:
        # The settings of an engine belong to it: the one that speaks now has no use for the other's.
        return "restart"
    section = key.split(".")
    if section[0] == "engine" and len(section) > 2 and section[1] != old.engine.name:
        return "live"  # of an engine that no process runs
    return WAYS[key]


def merged(old: Settings, new: Settings, keep: list[str]) -> Settings:
    """``new`` with the keys in ``keep`` as they are in ``old``."""
    values, before = msgspec.to_builtins(new), msgspec.to_builtins(old)
    for path in keep:
        *sections, key = path.split(".")
        target, source = values, before
        for section in sections:
            target, source = target[section], source[section]
        target[key] = source[key]
    return msgspec.convert(values, Settings)
