"""What goes wrong in a simulated life, how often, and under which configuration: all drawn from the seed."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from glmtts.daemon.core.settings import (
    ClassesSettings,
    ClassSettings,
    ClientLimits,
    EngineSettings,
    InteractiveSettings,
    QueueSettings,
    RecycleSettings,
    RestartSettings,
    Settings,
    WorkersSettings,
)

MIB = 1 << 20
GIB = 1 << 30

#: Kinds of accidents that can be switched off one by one, to see which of them a failure needs.
KINDS = (
    "bad_jobs",  # jobs that end their worker, or make it talk nonsense
    "killers",  # contents that kill every worker which speaks them
    "bad_starts",  # processes that can't be started, or never get ready
    "sickness",  # times in which no process gets ready
    "leaks",
    "foreigners",  # other people's processes on the GPUs
    "nvml",  # NVML fails, or blocks
    "lost_gpus",
    "stuck",  # processes that SIGKILL does not end
    "host_oom",
    "operators",
    "reloads",
    "slow_clients",
    "reconnects",
    "cancels",
    "deadlines",
    "crashes",  # of the daemon, and restarts of it
    "journal",  # times in which nothing can be written
    "bugs",  # exceptions in the core's handlers, and in the shell's effects
    "clocks",  # the wall clock is set, and the daemon or a worker stands still
    "folders",  # the runtime folder is removed, or taken by another daemon
    "crowds",  # a client with very many jobs at once
    "voices",  # clients that keep voices of their own, and speak with them
    "pieces",  # texts that come in pieces
)

#: What the first word of a text makes of its job, and how often in a thousand.
PLANS = {
    "ok": 720,
    "raise": 30,
    "exit": 20,
    "exit_late": 30,
    "once": 30,
    "oom": 15,
    "hang": 10,
    "still": 10,
    "runaway": 5,
    "garbage": 15,
    "stray": 10,
    "stray_fatal": 10,
    "nofile": 10,
    "sigterm": 10,
    "cuda": 10,
    "cuda_mute": 5,
    "last": 25,
    "oversleep": 15,
    "unasked": 5,
    "unsaid": 15,
}
#: Plans of which a worker dies and for which its job is to blame.
KILLING = frozenset(
    {
        "exit",
        "exit_late",
        "once",
        "hang",
        "still",
        "runaway",
        "garbage",
        "stray",
        "nofile",
        "cuda",
        "cuda_mute",
        "last",
        "stray_fatal",
        "oversleep",
        "unasked",
        "unsaid",
    }
)

#: What is said of a job that ends its process, and the process's exit status.
FATAL = {"oom": ("out_of_memory", 71), "cuda": ("cuda_context", 72), "sigterm": ("cancelled", 70)}

#: What NVML says of processes: all, zeros as in containers, or not even what is free.
Trust = Literal["process", "zero", "blind"]
#: Whether NVML itself fails and blocks now and then, or is not there.
Mood = Literal["ok", "moody", "absent"]


@dataclass
class Scene:
    """One life's circumstances. Sizes in bytes; ``load`` is what a process holds when it is ready."""

    settings: Settings
    slots: int
    #: Whether jobs are so brief that some lie ready in the only worker.
    brief: bool
    #: How many requests come, of what can be done.
    rush: float
    #: Share of the usual bad jobs and bad starts.
    violence: float
    gpus: int
    gpu_total: int
    load: int
    context: int
    work: int
    torch: bool
    trust: Trust
    nvml: Mood
    foreigners: bool
    loses_gpus: bool
    stuck: float
    host_total: int
    host_known: bool
    rss: int
    host_oom: bool
    #: Bytes per job, and where they are lost.
    leak: int
    leaks_on: Literal["", "device", "host"]
    #: Growth of the cache per job, which a trim gives back.
    hoard: int
    #: Whether there is a journal, and whether it fails now and then.
    journal: bool = True
    journal_fails: bool = False
    #: Seconds after which the daemon is killed or stopped, on average; 0: not before the end.
    daemon_ends: float = 0.0
    #: The chance that a step meets a bug, and that an effect does.
    bugs: float = 0.0
    #: Whether clocks are set, and things stand still.
    clocks: bool = False
    #: Whether some texts come in pieces.
    pieces: bool = False
    #: Whether processes have a flight recorder.
    recorder: bool = True
    #: Whether processes make the same bytes of a job again, as they say.
    repeats: bool = False
    #: Everything is known, nothing interferes and the leak is slow: it has to be seen in time.
    leak_must_be_seen: bool = False
    #: There is always room for a spare, and nothing goes wrong: there is always a worker that serves.
    gapless: bool = False


def scene_of(rng: random.Random, without: frozenset[str]) -> Scene:
    """The circumstances of a seed, but for the kinds of accidents that are switched off."""

    def on(kind: str, chance: float) -> bool:
        return rng.random() < chance and kind not in without

    # Lives in which nothing interferes: with leaks that have to be seen, or with recycles that nobody may notice.
    calm = rng.choices(["", "leaks", "recycles"], [8, 1, 1])[0]
    gpus = rng.choice([0, 1, 1, 2, 3]) if not calm else rng.choice([0, 1])
    per_gpu = rng.choice([1, 1, 2]) if gpus else 1
    load = rng.randint(2, 6) * GIB
    # What jobs take beside what stays is small where a leak has to be seen: floors show leaks, and no peaks.
    context, work = 300 * MIB, load // (40 if calm == "leaks" else 20)
    need = load + context + work
    factors = {"": [1.3, 1.3, 2.4, 4.0], "leaks": [1.6, 2.4, 4.0], "recycles": [2.6]}[calm]
    total = int(need * per_gpu * rng.choice(factors))
    leaks = on("leaks", {"": 0.3, "leaks": 1.0, "recycles": 0.0}[calm])
    leaks_on: Literal["", "device", "host"] = ""
    if leaks:
        leaks_on = "device" if gpus and (calm or rng.random() < 0.7) else "host"
    room = total // per_gpu - need
    jobs_to_the_end = rng.choice([60, 120] if calm else [80, 150, 250])
    rss = 2 * GIB
    places = per_gpu * max(1, gpus)
    host_total = max(places, 4) * 2 * rss + (rng.choice([0, 4, 30]) * GIB)
    if calm == "leaks":
        host_total = (places + 2) * rss + 8 * GIB
    torch = rng.random() < 0.7
    if leaks_on == "host" or not torch:
        # What is seen once a second, or less often, shows several of these brief jobs at a time.
        jobs_to_the_end *= 5
    leak = (room if leaks_on == "device" else 4 * GIB) // jobs_to_the_end if leaks_on else 0
    trusts: list[Trust] = ["process", "zero", "blind"]
    trust = "process" if calm else rng.choices(trusts, [3, 1, 1])[0]
    moods: list[Mood] = ["ok", "moody", "absent"]
    nvml: Mood = "ok" if calm else rng.choices(moods, [5, 4, 1])[0]
    if nvml == "moody" and "nvml" in without:
        nvml = "ok"
    highest = rng.randint(1, 2 if calm else 4) if not gpus else rng.choice([0, 0, rng.randint(1, places)])
    most = min(highest or places, places) if gpus else highest
    lowest = rng.choice([0, 0, 0, 1, most])
    idle_unload_s = rng.choice([0.0, 0.0, 3.0, 15.0]) if not calm else 0.0
    names: Literal["all", "none"] | list[int] = "none"
    if gpus:
        names = rng.choice(["all", list(range(gpus))])
        if nvml == "absent":
            names = list(range(gpus))
    settings = Settings(
        engine=EngineSettings(name="fault"),
        workers=WorkersSettings(
            gpus=names,
            per_gpu=per_gpu,
            min=min(lowest, most),
            max=highest,
            vram_mib=(need >> 20) + 1 if rng.random() < 0.4 else 0,
            scale_up_wait_s=rng.choice([0.5, 5.0]),
            idle_unload_s=idle_unload_s,
            start_timeout_s=4.0,
            hang_timeout_s=2.0,
            stop_timeout_s=0.5,
            recycle=RecycleSettings(
                max_jobs=rng.choice([0, 0, 25]) if calm != "leaks" else 0,
                max_age_s=rng.choice([0.0, 0.0, 20.0]) if calm != "leaks" else 0.0,
                max_vram_share=rng.choice([0.0, 0.0, 0.95 / per_gpu]) if gpus else 0.0,
                max_rss_mib=(rss + 3 * GIB) >> 20 if rng.random() < 0.2 else 0,
                idle_trim_s=rng.choice([0, 1]),
            ),
            restart=RestartSettings(
                backoff_max_s=8.0, breaker_failures=rng.choice([1, 3, 5]), quarantine_s=rng.choice([10.0, 3_600.0])
            ),
        ),
        queue=QueueSettings(
            max_waiting=rng.randint(2, 20),
            max_waiting_batch=rng.choice([8, 40]),
            max_per_client=rng.choice([12, 1_024]),
            preempt=rng.random() < 0.8,
            classes=ClassesSettings(
                interactive=InteractiveSettings(weight=rng.choice([1, 4, 4])),
                batch=ClassSettings(weight=rng.choice([1, 1, 4])),
            ),
            interactive_workers=rng.choice([0, 1, 1, 2]),
            keep_results_s=20.0,
            keep_results_mib=1,
            keep_durable_s=rng.choice([5.0, 86_400.0]),
            keep_durable_mib=rng.choice([1, 10_240]),
        ),
        limits=replace(
            Settings().limits,
            rate=rng.choice(["", "", "300/minute", "20/minute"]),
            rate_batch=rng.choice(["", "", "60/minute"]),
            gateways=["user3"],
            own_voices=2,
            own_voices_mib=1,
            clients={"user0": ClientLimits(rate="", max_share=1.0), "uid:1003/b": ClientLimits(rate="5/minute")},
        ),
    )
    scene = Scene(
        settings=settings,
        slots=rng.choice((1, 1, 2)),
        brief=not calm and rng.random() < 0.15,
        rush=rng.choice((1.0, 1.0, 3.0)),
        violence=0.0 if calm else rng.choice([1.0, 0.3, 0.1]),
        gpus=gpus,
        gpu_total=total,
        load=load,
        context=context,
        work=work,
        torch=torch,
        trust=trust,
        nvml=nvml,
        foreigners=on("foreigners", 0.0 if calm else 0.4),
        loses_gpus=on("lost_gpus", 0.0 if calm else 0.2),
        stuck=0.1 if on("stuck", 0.0 if calm else 0.3) else 0.0,
        host_total=host_total,
        host_known=bool(calm) or rng.random() < 0.8,
        rss=rss,
        host_oom=on("host_oom", 0.0 if calm else 0.3),
        leak=leak,
        leaks_on=leaks_on,
        hoard=load // 200 if not calm and rng.random() < 0.3 else 0,
    )
    scene.journal = rng.random() < 0.93
    scene.journal_fails = on("journal", 0.0 if calm else 0.4)
    scene.daemon_ends = rng.choice([5.0, 20.0, 60.0]) if on("crashes", 0.0 if calm else 0.5) else 0.0
    # Drawn apart, so that the rest of a seed's circumstances does not depend on it.
    scene.clocks = not calm and "clocks" not in without and random.Random(f"clocks {rss} {total} {load}").random() < 0.4
    scene.repeats = random.Random(f"repeats {rss} {total} {load}").random() < 0.5
    scene.pieces = "pieces" not in without and random.Random(f"pieces {rss} {total} {load}").random() < 0.4
    if scene.pieces:
        drawn = random.Random(f"texts {total} {load}")
        timeout_s, most = drawn.choice((0.5, 3.0, 60.0)), drawn.choice((3, 20, 100))
        scene.settings = replace(settings, limits=replace(settings.limits, text_timeout_s=timeout_s, open_texts=most))
    if scene.slots > 1:
        drawn = random.Random(f"slots {rss} {total} {load}")
        scene.slots, scene.recorder = drawn.choice((2, 3, 4, 8, 16)), drawn.random() < 0.8
    scene.leak_must_be_seen = bool(calm and leaks_on)
    # There is a second place's worth of memory beside each, on the GPUs and on the host.
    scene.gapless = calm == "recycles"
    return scene


_PLANS, _CHANCES = list(PLANS), list(itertools.accumulate(PLANS.values()))


def plan(rng: random.Random, scene: Scene, without: frozenset[str]) -> str:
    """How a job will go."""
    if "bad_jobs" in without or rng.random() >= scene.violence:
        return "ok"
    return rng.choices(_PLANS, cum_weights=_CHANCES)[0]
