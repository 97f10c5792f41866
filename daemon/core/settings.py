"""The configuration as types: every section and key with its default. etc/glmtts.toml says why."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from glmtts.protocol.audio_formats import MAX_RECORDING_MIB
from glmtts.protocol.control import MAX_WORKERS

Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Mib = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]


class Section(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of all sections."""


class DaemonSettings(Section, frozen=True):
    runtime_dir: str = ""
    state_dir: str = ""
    socket_mode: Annotated[str, Meta(pattern=r"\A0?[0-7]{3}\Z")] = "0660"
    socket_group: str = ""
    admin_group: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: Seconds = 30.0


class FaultEngineSettings(Section, frozen=True):
    """How the fault engine behaves before its first job, and how many it takes at once."""

    slots: Count = 1
    start: Literal["normal", "slow", "crash", "hang"] = "normal"
    start_s: Seconds = 0.0
    vram_mib: Mib = 0


class GlmttsEngineSettings(Section, frozen=True):
    """Settings of the GLM-TTS engine. Those that a request's ``options`` may name too are only their defaults."""

    root: str = ""
    use_phoneme: bool = False
    use_cache: bool = True
    sampling: Literal["ras", "topk"] = "ras"
    top_k: Annotated[int, Meta(ge=1, le=1_000)] = 25
    max_tokens: Annotated[int, Meta(ge=0, le=10_000)] = 0
    max_segment_s: PositiveSeconds = 300.0
    dictionary: str = ""
    dtype: Literal["fp32", "bf16"] = "fp32"
    batching: Literal["off", "on"] = "off"
    slots: Annotated[int, Meta(ge=0, le=256)] = 0
    flow_precision: Literal["fp32", "tf32"] = "fp32"
    stream: Literal["clause", "segment"] = "clause"
    voice_cache_mib: Mib = 64
    text_processes: Annotated[int, Meta(ge=1, le=4)] = 1


class ServerEngineSettings(Section, frozen=True):
    """A speech server: how it is started, where it listens, and what its requests hold."""

    api: Literal["openai"] = "openai"
    command: list[str] = []
    url: str = "http://127.0.0.1:{port}"
    start_timeout_s: PositiveSeconds = 240.0
    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    voices: list[str] = []
    ref_audio: bool = False
    request_chars: CountOrZero = 0
    model: str = ""
    pcm_rate: CountOrZero = 0
    extra: dict[str, str | int | float | bool] = {}
    api_key_file: str = ""


class EngineSettings(Section, frozen=True):
    name: Literal["espeak", "glmtts", "fault", "server"] = "espeak"
    python: str = ""
    warmup_text: str = "你好。"
    confine: bool = True
    fault: FaultEngineSettings = FaultEngineSettings()
    glmtts: GlmttsEngineSettings = GlmttsEngineSettings()
    server: ServerEngineSettings = ServerEngineSettings()


class RecycleSettings(Section, frozen=True):
    max_jobs: CountOrZero = 0
    max_age_s: Seconds = 0.0
    max_rss_mib: Mib = 0
    max_vram_mib: Mib = 0
    max_vram_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    leak_min_mib: Mib = 256
    leak_horizon_jobs: CountOrZero = 20
    idle_trim_s: Seconds = 300.0


class RestartSettings(Section, frozen=True):
    backoff_initial_s: PositiveSeconds = 0.5
    backoff_max_s: PositiveSeconds = 30.0
    breaker_failures: Count = 5
    breaker_window_s: PositiveSeconds = 60.0
    quarantine_after: CountOrZero = 2
    quarantine_s: PositiveSeconds = 3_600.0
    max_attempts: Count = 2


class WorkersSettings(Section, frozen=True):
    gpus: Literal["all", "none"] | list[Annotated[int, Meta(ge=0, le=1_023)]] = "all"
    per_gpu: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] = 1
    min: Annotated[int, Meta(ge=0, le=MAX_WORKERS)] = 0
    max: Annotated[int, Meta(ge=0, le=MAX_WORKERS)] = 0
    vram_mib: Mib = 0
    scale_up_wait_s: Seconds = 5.0
    idle_unload_s: Seconds = 0.0
    start_timeout_s: PositiveSeconds = 300.0
    hang_timeout_s: PositiveSeconds = 60.0
    stop_timeout_s: PositiveSeconds = 5.0
    recycle: RecycleSettings = RecycleSettings()
    restart: RestartSettings = RestartSettings()


class ClassSettings(Section, frozen=True):
    """A class of priority: its share when all wait, and who may use it (user names or uids; empty: everyone)."""

    weight: Annotated[int, Meta(ge=1, le=1_000)] = 1
    users: list[str] = []


class VipSettings(ClassSettings, frozen=True):
    # A type of its own: a file that sets the weight alone must not open the class to everyone.
    weight: Annotated[int, Meta(ge=1, le=1_000)] = 16
    users: list[str] = field(default_factory=lambda: ["root"])


class InteractiveSettings(ClassSettings, frozen=True):
    weight: Annotated[int, Meta(ge=1, le=1_000)] = 4


class ClassesSettings(Section, frozen=True):
    vip: VipSettings = VipSettings()
    interactive: InteractiveSettings = InteractiveSettings()
    batch: ClassSettings = ClassSettings()


class QueueSettings(Section, frozen=True):
    max_waiting: CountOrZero = 10
    max_waiting_batch: CountOrZero = 10_000
    warn_waiting: CountOrZero = 4
    max_per_client: Count = 1_024
    max_share: Share = 0.8
    preempt: bool = True
    interactive_workers: CountOrZero = 1
    default_deadline_s: Seconds = 0.0
    keep_results_s: Seconds = 300.0
    keep_results_mib: Mib = 32
    keep_durable_s: PositiveSeconds = 86_400.0
    keep_durable_mib: Mib = 10_240
    classes: ClassesSettings = ClassesSettings()


class ClientLimits(Section, frozen=True):
    """Limits of one client in place of the general ones: those that are None stay as they are."""

    rate: str | None = None
    rate_batch: str | None = None
    max_jobs: Count | None = None
    max_share: Share | None = None
    own_voices: CountOrZero | None = None


class LimitsSettings(Section, frozen=True):
    rate: str = "10/minute"
    rate_batch: str = ""
    clients: dict[str, ClientLimits] = {}
    #: The user of glmtts-gateway.service, where it is installed.
    gateways: list[str] = field(default_factory=lambda: ["glmtts-gateway"])
    text_chars: Annotated[int, Meta(ge=1, le=100_000)] = 5_000
    text_timeout_s: PositiveSeconds = 60.0
    open_texts: CountOrZero = 100
    header_kib: Annotated[int, Meta(ge=4, le=1_024)] = 64
    body_mib: Annotated[int, Meta(ge=1, le=MAX_RECORDING_MIB)] = 16
    recordings_mib: Count = 256
    recording_min_s: PositiveSeconds = 1.0
    recording_max_s: PositiveSeconds = 30.0
    send_buffer_mib: Count = 64
    max_connections: Count = 4_096
    outputs_mib: Mib = 10_240
    disk_reserve_mib: Mib = 256
    usage_days: Annotated[int, Meta(ge=0, le=366)] = 31
    own_voices: CountOrZero = 10
    own_voices_mib: Count = 1_024


class AudioSettings(Section, frozen=True):
    sample_rate: Annotated[int, Meta(ge=8_000, le=48_000)] = 24_000
    default_format: Literal["wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le"] = "wav"
    outputs: str = ""


class VoicesSettings(Section, frozen=True):
    folder: str = ""
    default: str = ""


class MetricsSettings(Section, frozen=True):
    listen: str = ""


class AlertSettings(Section, frozen=True):
    """From when on something is trouble, and for how long it has to be."""

    gpu_memory_share: Share = 0.9
    response_s: PositiveSeconds = 60.0
    error_share: Share = 0.1
    rtf: Annotated[float, Meta(gt=0)] = 1.0
    faults: Count = 3
    window_s: PositiveSeconds = 300.0
    for_s: PositiveSeconds = 30.0


class TcpSettings(Section, frozen=True):
    listen: str = ""
    server_key: str = ""
    authorised_keys: str = ""


class Settings(Section, frozen=True):
    """The whole configuration."""

    daemon: DaemonSettings = DaemonSettings()
    engine: EngineSettings = EngineSettings()
    workers: WorkersSettings = WorkersSettings()
    queue: QueueSettings = QueueSettings()
    limits: LimitsSettings = LimitsSettings()
    audio: AudioSettings = AudioSettings()
    voices: VoicesSettings = VoicesSettings()
    metrics: MetricsSettings = MetricsSettings()
    alerts: AlertSettings = AlertSettings()
    tcp: TcpSettings = TcpSettings()


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every key with its dotted path, for comparing two configurations key by key."""
    result: dict[str, Any] = {}
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if isinstance(item, Section):
            result |= flat(item, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = item
    return result
