"""Worker processes whose memory is made up, job by job: leaks, caches, warm-ups and noise, alone and together.

A world is seeded and alive: a trim changes how it goes on, and a process that is replaced starts again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from glmtts.daemon.core.workers.memory_watch import MIB, IdleSample, Limit, MemoryLimits

GIB = 1024 * MIB


@dataclass(frozen=True)
class Leak:
    """``mib`` per job on average from job ``onset`` on; ``pattern``: every job alike, by text, or some jobs only."""

    where: str  # live, outside, host
    mib: float
    onset: int
    pattern: str = "even"


@dataclass(frozen=True)
class Saw:
    """A cache without a bound of its own that is emptied now and then: ``mib`` at most, within ``jobs`` jobs."""

    where: str
    mib: float
    jobs: int


@dataclass(frozen=True)
class World:
    """How the memory of one process goes. Sizes in MiB."""

    name: str
    seed: int
    limit: float
    base_live: float
    base_outside: float
    rss_limit: float
    base_rss: float
    #: (where, size, jobs until 63 % of it are there)
    warmups: tuple[tuple[str, float, float], ...] = ()
    #: Steps of a bounded cache (a voice that is new): (where, size of one, how many, chance per job)
    steps: tuple[tuple[str, float, int, float], ...] = ()
    saws: tuple[Saw, ...] = ()
    leaks: tuple[Leak, ...] = ()
    #: What the longest text needs on the device while it is spoken: torch's cache keeps it.
    working: float = 500.0
    #: Cache that is lost to fragments at each job, and the share of it that no trim gives back.
    fragments: float = 0.0
    stuck: float = 0.0
    rss_noise: float = 20.0
    sees_vram: bool = True
    sees_torch: bool = True
    #: One in this many samples has the device's figure: the sampler's clock is another.
    vram_every: int = 1
    hard: bool = False

    def limits(self) -> MemoryLimits:
        return MemoryLimits(
            vram=Limit(round(self.limit * MIB), "max_vram_mib" if self.hard else "GPU 0", self.hard),
            rss=Limit(round(self.rss_limit * MIB), "max_rss_mib"),
        )

    @property
    def onset(self) -> int:
        return min((leak.onset for leak in self.leaks), default=0)

    @property
    def host_leaks(self) -> bool:
        return any(leak.where == "host" for leak in self.leaks)


@dataclass
class Process:
    """One process in a world."""

    world: World
    life: int = 0
    jobs: int = 0
    rng: random.Random = field(init=False)
    grown: dict[str, float] = field(init=False)
    #: As shares of the limits: what it holds when idle, and what it held at most.
    device_share: float = 0.0
    rss_share: float = 0.0
    device_peak: float = 0.0
    rss_peak: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.world.seed} {self.life}")
        self.grown = dict.fromkeys(("live", "outside", "host", "cache"), 0.0)
        self._saws = [0.0] * len(self.world.saws)
        self._left = [count for _, _, count, _ in self.world.steps]
        self._fragments = 0.0
        self._reserved = 0.0
        self._text = 0.0
        self._settle()

    def job(self) -> IdleSample:
        """Speak a text; returns what is held after it."""
        world, rng = self.world, self.rng
        self.jobs += 1
        # Most texts are short, some very long.
        self._text = min(1.0, rng.lognormvariate(-2.5, 0.9))
        for leak in world.leaks:
            if self.jobs > leak.onset:
                self.grown[leak.where] += leak.mib * self._how_much(leak.pattern)
        for index, (where, size, _, chance) in enumerate(world.steps):
            if self._left[index] and rng.random() < chance:
                self._left[index] -= 1
                self.grown[where] += size
        for index, saw in enumerate(world.saws):
            self._saws[index] += saw.mib / saw.jobs * rng.uniform(0.6, 1.4)
            if self._saws[index] >= saw.mib:
                self._saws[index] = 0.0
        self._fragments += world.fragments * rng.uniform(0.5, 1.5)
        return self._settle()

    def trim(self) -> IdleSample:
        """Give cached memory back; returns what is left."""
        self._fragments *= self.world.stuck
        self._reserved = 0.0
        self._text = 0.0
        return self._settle()

    def _how_much(self, pattern: str) -> float:
        if pattern == "by text":
            return self._text / 0.12
        if pattern == "some jobs":
            return 3.0 if self.rng.random() < 1 / 3 else 0.0
        return self.rng.uniform(0.8, 1.2)

    def _part(self, where: str) -> float:
        warm = sum(
            size * (1 - math.exp(-self.jobs / pace)) for place, size, pace in self.world.warmups if place == where
        )
        saws = zip(self.world.saws, self._saws, strict=True)
        return self.grown[where] + warm + sum(held for saw, held in saws if saw.where == where)

    def _settle(self) -> IdleSample:
        world = self.world
        live = world.base_live + self._part("live")
        self._reserved = max(self._reserved, _up(live + self._fragments + world.working * self._text, 20))
        vram = _up(self._reserved + world.base_outside + self._part("outside"), 2)
        # The C library keeps, and gives back, pages as it likes.
        noise = self.rng.random() * world.rss_noise * (0.3 + self._text)
        rss = world.base_rss + self._part("host") + noise
        seen = vram if world.sees_vram else self._reserved
        self.device_share, self.rss_share = seen / world.limit, rss / world.rss_limit
        self.device_peak = max(self.device_peak, self.device_share)
        # While it speaks, the host holds the audio and its encodings.
        self.rss_peak = max(self.rss_peak, (rss + 0.15 * world.base_rss * self._text) / world.rss_limit)
        told = world.sees_vram and self.jobs % world.vram_every == 0
        return IdleSample(
            jobs=self.jobs,
            rss=round(rss * MIB),
            vram=round(vram * MIB) if told else None,
            torch_allocated=round(live * MIB) if world.sees_torch else None,
            torch_reserved=round(self._reserved * MIB) if world.sees_torch else None,
        )


def _up(size: float, block: int) -> float:
    return math.ceil(size / block) * block


def healthy(seed: int, *, highest: tuple[float, float] = (0.5, 0.88)) -> World:
    """A process without a leak that comes to a share within ``highest`` of its limits, and no further."""
    rng = random.Random(f"healthy {seed}")
    limit = rng.choice([8, 12, 16, 24, 24, 48, 80]) * 1024.0
    top = rng.uniform(*highest)
    base = limit * top * rng.uniform(0.35, 0.85)
    outside = min(rng.uniform(300, 900), base / 2)
    rss_limit = rng.choice([4, 8, 16, 32]) * 1024.0
    rss_top = rng.uniform(*highest)
    base_rss = rss_limit * rss_top * rng.uniform(0.3, 0.8)
    # The room is shared out: warm-up, a bounded cache, one that is emptied now and then, work, fragments of rounding.
    shares = [rng.random() * rng.choice([0, 1, 1]) for _ in range(6)]
    room = limit * top - base - 24
    warm_live, warm_out, voices, saw_live, saw_out, work = (room * part / max(sum(shares), 1.0) for part in shares)
    host = [rng.random() * rng.choice([0, 1, 1]) for _ in range(4)]
    rss_room = rss_limit * rss_top - base_rss
    warm_host, voices_host, saw_host, noise = (rss_room * part / max(sum(host), 1.0) for part in host)
    count = rng.randint(3, 40)
    return World(
        name="healthy",
        seed=seed,
        limit=limit,
        base_live=base - outside,
        base_outside=outside,
        rss_limit=rss_limit,
        base_rss=base_rss,
        warmups=tuple(
            (where, size, 10 ** rng.uniform(0, 2.3))
            for where, size in (("live", warm_live), ("outside", warm_out), ("host", warm_host))
        ),
        steps=(
            ("live", voices / count, count, 10 ** rng.uniform(-2.5, -0.3)),
            ("host", voices_host / count, count, 10 ** rng.uniform(-2.5, -0.3)),
        ),
        saws=(
            _saw(rng, "live", saw_live),
            _saw(rng, "outside", saw_out),
            _saw(rng, "host", saw_host),
        ),
        working=max(20.0, work),
        rss_noise=noise / 1.3,
        sees_vram=rng.random() < 0.8,
        sees_torch=rng.random() < 0.8,
        vram_every=rng.choice([1, 1, 1, 2, 5]),
        hard=rng.random() < 0.3,
    )


def _saw(rng: random.Random, where: str, mib: float) -> Saw:
    # No faster than the fastest leak: nothing but its limit could tell it from one.
    return Saw(where, mib * 0.97, round(max(mib / 200, 10 ** rng.uniform(1, 3))))


def leaking(seed: int, *, tight: bool = False) -> World:
    """A process that leaks and does what healthy ones do. ``tight``: it has 1 to 2 GiB of room from its start."""
    rng = random.Random(f"leaking {seed}")
    where = rng.choice(["live", "live", "outside", "host", "both"])
    mib = 10 ** rng.uniform(math.log10(50), math.log10(200)) if tight else 10 ** rng.uniform(0, math.log10(200))
    calm = healthy(seed, highest=(0.3, 0.6))
    # A leak of 1 MiB a job in 80 GiB would take as many jobs as all the others together.
    limit = min(calm.limit, max(8 * 1024.0, mib * 6_000))
    rss_limit = min(calm.rss_limit, max(4 * 1024.0, mib * 6_000))
    scale, rss_scale = limit / calm.limit, rss_limit / calm.rss_limit
    onset = rng.choice([0, 0, rng.randint(20, 300), rng.randint(300, 2_000)])
    places = {"both": ("live", "outside")}.get(where, (where,))
    leaks = tuple(
        Leak(place, mib / len(places), onset, rng.choice(["even", "even", "by text", "some jobs"])) for place in places
    )
    if tight:
        return World(
            name=f"tight {where}",
            seed=seed,
            limit=limit,
            base_live=limit - rng.uniform(1_000, 2_000) - 600,
            base_outside=600,
            rss_limit=rss_limit,
            base_rss=rss_limit - rng.uniform(1_000, 2_000),
            leaks=tuple(Leak(place, mib / len(places), onset) for place in places),
            working=100,
        )
    torch = where == "both" or rng.random() < 0.8
    return World(
        name=where,
        seed=seed,
        limit=limit,
        base_live=calm.base_live * scale,
        base_outside=calm.base_outside * scale,
        rss_limit=rss_limit,
        base_rss=calm.base_rss * rss_scale,
        warmups=tuple((at, size * (rss_scale if at == "host" else scale), pace) for at, size, pace in calm.warmups),
        steps=tuple(
            (at, size * (rss_scale if at == "host" else scale), count, chance) for at, size, count, chance in calm.steps
        ),
        saws=tuple(
            Saw(saw.where, saw.mib * (rss_scale if saw.where == "host" else scale), saw.jobs) for saw in calm.saws
        ),
        leaks=leaks,
        working=calm.working * scale,
        fragments=rng.choice([0, 0, 0, mib / 2]),
        rss_noise=calm.rss_noise * rss_scale,
        # Outside torch nothing but NVML, on the device without torch nothing but NVML, can see a leak.
        sees_vram=not torch or where in ("outside", "both") or rng.random() < 0.6,
        sees_torch=torch,
        vram_every=rng.choice([1, 1, 2, 5]),
        hard=rng.random() < 0.3,
    )


def fragmenting(seed: int, *, stuck: bool = False) -> World:
    """A process whose cache falls to fragments, which trims bring back, or, where they are ``stuck``, do not."""
    rng = random.Random(f"fragmenting {seed}")
    calm = healthy(seed, highest=(0.3, 0.6))
    mib = 10 ** rng.uniform(0.3, 2)
    return World(
        name="stuck fragments" if stuck else "fragments",
        seed=seed,
        limit=min(calm.limit, max(8 * 1024.0, mib * 1_000)),
        base_live=2_000,
        base_outside=500,
        rss_limit=calm.rss_limit,
        base_rss=calm.base_rss,
        leaks=(Leak("cache", mib, 0),) if stuck else (),
        working=rng.uniform(100, 1_500),
        fragments=mib,
        stuck=1.0 if stuck else 0.0,
        sees_vram=rng.random() < 0.7,
        hard=rng.random() < 0.3,
    )
