"""Clients as the simulation plays them: what they ask for, what they hear, and how they come and go."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import requests
from glmtts.protocol.events import Accepted, Audio

from .accidents import KILLING, plan
from .hearing import Hearing, Question
from .rules import Rule, must
from .texts import SEGMENT_CHARS, takes_s

if TYPE_CHECKING:
    from .world import World


#: How often clients speak for others; those who may do it mostly do.
_GATEWAY = {"uid:1003": 0.7}
#: The journal is written, or found to fail, within that.
_DISK_S = 0.2


@dataclass
class Connection:
    """A client's connection; ``slow`` ones don't read their streams."""

    number: int
    client: inputs.Client
    envelope: tuple[bytes, ...]
    slow: bool
    open: bool = True
    heard: dict[str, Hearing | Question] = field(default_factory=dict)

    @property
    def to(self) -> inputs.ReplyTo:
        return inputs.ReplyTo(self.number, self.envelope)


class Clients:
    """Everybody who may connect."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = itertools.count(1)
        self._texts = itertools.count(1)
        self._overruns: list[inputs.Input] = []
        self.connections: dict[int, Connection] = {}
        #: Every request that was made, of those that are heard for a while.
        self.hearings: list[Hearing] = []
        self.accepted = 0
        self.codes: dict[str, int] = {}
        #: Accepted durable jobs whose end their clients do not know.
        self._durable: dict[str, Hearing] = {}
        #: Some of those whose end they know.
        self._past: deque[Hearing] = deque(maxlen=5)
        self._open: list[Connection] = []
        for number in range(10):
            client = inputs.Client("uid:0", "root") if number == 9 else _client(number % 4)
            self._open.append(self.connect(client, envelope=(b"",) if number % 5 == 4 else ()))

    def connect(self, client: inputs.Client, envelope: tuple[bytes, ...] = (), number: int | None = None) -> Connection:
        """A new connection; ``number`` for an operator's."""
        world = self._world
        slow = number is None and world.random.random() < 0.05 and "slow_clients" not in world.without
        connection = Connection(number or next(self._numbers), client, envelope, slow)
        self.connections[connection.number] = connection
        return connection

    # --- hearing

    def sent(self, effect: effects.Send) -> None:
        """The core has said something to somebody."""
        connection = self.connections[effect.to.connection]
        if not connection.open or (connection.envelope and not effect.event.final):
            return
        must(Rule.ORDER, effect.to.envelope == connection.envelope, "an answer without its envelope")
        heard = connection.heard.get(effect.event.id)
        must(Rule.ORDER, heard is not None, "an event for a request that was not made:", effect)
        if connection.slow and isinstance(effect.event, Audio) and isinstance(heard, Hearing):
            heard.lossy = True
            self._overruns.append(inputs.ConnectionOverrun(connection.number, effect.event.job))
        elif heard is not None:
            heard.hear(effect.event, effect.body, self._world.now)  # type: ignore[arg-type]
            if isinstance(heard, Hearing) and heard.ended:
                self._ended(heard)
            elif isinstance(effect.event, Accepted) and isinstance(heard, Hearing):
                self._accepted(connection, heard)

    def missed(self, effect: effects.Send) -> None:
        """The shell has met a bug with an event: what comes after it lacks it, and may not end well."""
        heard = self.connections[effect.to.connection].heard.get(effect.event.id)
        if isinstance(heard, Hearing) and not effect.event.final:
            heard.joined = True
            heard.lossy = heard.lossy or isinstance(effect.event, Audio)

    def _accepted(self, connection: Connection, hearing: Hearing) -> None:
        """A client knows the id of its job."""
        if hearing.durable:
            self._durable[hearing.job] = hearing
        if not hearing.joined:
            self._world.after(0.0, lambda: self._follow(connection, hearing))

    def _ended(self, hearing: Hearing) -> None:
        world = self._world
        self.codes[hearing.code] = self.codes.get(hearing.code, 0) + 1
        if hearing.code not in ("shutting_down", "slow_consumer"):
            known = self._durable.pop(hearing.job, None)
            if known is not None:
                self._past.append(known)
        if hearing.waits_for and hearing.code == "job_not_found" and not hearing.stranger:
            lost = hearing.durable and world.journal.answerable(hearing.waits_for)
            must(Rule.OUTPUT_ONCE, not lost, hearing, "asks in vain for a job that was accepted")
        if hearing.code == "quarantined":
            after = world.invariants.quarantine_after
            guilty = hearing.text.split()[0] in KILLING
            must(
                Rule.QUARANTINE,
                guilty or world.bad_luck(hearing.text) >= after,
                hearing,
                "is healthy, and refused for what it never did",
            )
        if hearing.said and hearing.code == "done" and not hearing.joined and not world.scene.bugs:
            spoken = world.spoken.get(hearing.job, "")
            # Marks alone, after a flush, are not spoken.
            same = spoken.rstrip(". ") == hearing.said.rstrip(". ")
            must(Rule.OUTPUT_ONCE, same, hearing, "sent, and heard", spoken)
        if hearing.path:
            wrote = world.files.get(hearing.path)
            must(Rule.OUTPUT_ONCE, wrote == hearing.job, hearing, "was told of an output that", wrote, "wrote")

    def had_to_wait(self) -> None:
        """The daemon had stood still: what was due meanwhile is due now."""
        now = self._world.now
        for connection in self.connections.values():
            for heard in connection.heard.values():
                if isinstance(heard, Hearing) and heard.deadline_at is not None:
                    heard.deadline_at = max(heard.deadline_at, now + (_DISK_S if heard.durable else 0.0))

    def report_overruns(self) -> None:
        """The shell says what it could not send."""
        while self._overruns:
            self._world.happen(self._overruns.pop(0))

    def put(self, connection: Connection, heard: Hearing | Question) -> None:
        """A request is made: its answers are listened to."""
        connection.heard[heard.id] = heard
        if isinstance(heard, Hearing):
            self.hearings.append(heard)

    # --- daemons come and go

    def cut_off(self) -> None:
        """The daemon has ended, and all connections with it."""
        self._overruns.clear()
        for connection in self.connections.values():
            connection.open = False
            connection.heard.clear()

    def come_back(self) -> None:
        """Clients connect to the next daemon, and ask for what it has of theirs."""
        world = self._world
        for place, old in enumerate(self._open):
            self._open[place] = self.connect(old.client, old.envelope)
        for hearing in (*self._durable.values(), *self._past):
            own = [c for c in self._open if c.client.key == hearing.client]
            # And now and then somebody asks for what is not his.
            asks = own[0] if world.random.random() < 0.8 else world.random.choice(self._open)
            world.later(world.random.expovariate(1), lambda c=asks, of=hearing: self._wait(c, of))  # type: ignore[misc]

    # --- asking

    def arrive(self) -> None:
        """A client does something, and the next one will."""
        world = self._world
        if world.ending:
            return
        rng = world.random
        place = rng.randrange(len(self._open))
        if rng.random() < 0.02 and "reconnects" not in world.without:
            old = self._open[place]
            self._open[place] = self.connect(old.client, old.envelope)
            old.open = False
            world.happen(inputs.ConnectionClosed(old.number))
        if not world.ending:
            world.jobs_left -= 1
            if not world.pieces.come(self._open[place]):
                self._request(self._open[place])
        if rng.random() < 0.01 and "crowds" not in world.without:
            self._crowd(place)
        if world.floods:
            world.flood.come()
        # Busy hours and quiet ones.
        busy = world.operators.highest * (4.0 if int(world.now / 10) % 3 else 2.0)
        if int(world.now / 30) % 7 == 6:
            busy *= 0.1
        busy *= world.scene.rush * (8.0 if world.scene.brief else 1.0)
        world.after(rng.expovariate(max(1.0, busy)), self.arrive)

    def _crowd(self, place: int) -> None:
        """Somebody brings a whole book, and somebody else as many sentences."""
        world = self._world
        for number in range(world.random.randint(10, 40)):
            connection = self._open[(place + number % 2) % len(self._open)]
            if world.ending or not connection.open:
                return
            world.jobs_left -= 1
            self._request(connection, "batch", chapters=number % 2 == 0)

    def ask_a_last_time(self) -> None:
        """Right before the end."""
        for _ in range(5):
            self._request(self._world.random.choice(self._open))

    def _request(
        self, connection: Connection, priority: requests.Priority | None = None, *, chapters: bool | None = None
    ) -> None:
        world = self._world
        rng = world.random
        root = connection.client.user == "root"
        priority = priority or ("vip" if root else rng.choices(("interactive", "batch"), (3, 1))[0])
        text = f"{plan(rng, world.scene, world.without)} {next(self._texts)} "
        lengths: tuple[int, ...] = (0, 1, 2, 4, 11) if priority == "batch" else (0, 0, 1, 2)
        if chapters is not None:
            lengths = (8, 11) if chapters else (0, 0)
        text += "x" * (SEGMENT_CHARS * rng.choice(lengths))
        killer = rng.random() < 0.02 * min(1.0, world.scene.violence * 2) and "killers" not in world.without
        stream = not killer and rng.random() < 0.4
        deadline = None
        if not killer and rng.random() < 0.2 and "deadlines" not in world.without:
            deadline = rng.uniform(0.05, 5)
        output: str | None = None
        if not killer and not stream and (rng.random() < 0.1 or text.startswith("unsaid")):
            output = f"{next(self._texts)}.wav" if rng.random() < 0.7 else f"again{rng.randrange(50)}.wav"
        request = requests.Synthesize(
            id=world.id(),
            v=1,
            text=f"exit killer{rng.randrange(3)}" if killer else text,
            stream=stream,
            events="final" if rng.random() < 0.2 else "all",
            priority=priority,
            deadline_s=UNSET if deadline is None else deadline,
            prompt=requests.Prompt(text="x") if not killer and rng.random() < 0.1 else UNSET,
            output=UNSET if output is None else output,
            key=f"k{rng.randrange(10**9)}" if rng.random() < 0.1 else UNSET,
            durable=rng.choices((UNSET, True, False), (70, 15, 15))[0] if not killer else UNSET,
            speed=1.0 if killer or sum(map(ord, text)) % 16 else 2.0,
            on_behalf_of=rng.choice("ab") if rng.random() < _GATEWAY.get(connection.client.key, 0.01) else UNSET,
        )
        can_be = request.durable is True and not stream and output is None and not killer
        request = replace(request, follow=can_be and sum(map(ord, text)) % 3 > 0)
        self.ask(connection, request, joined=False)
        if request.key is not UNSET:
            again = replace(request, text=f"ok {next(self._texts)}" if rng.random() < 0.1 else request.text)
            world.after(
                rng.choice((1, 1, 20)) * rng.expovariate(1),
                lambda: self.ask(rng.choice(self._open), replace(again, id=world.id()), joined=True),
            )

    def ask(
        self, connection: Connection, request: requests.Synthesize, *, joined: bool, name: str = ""
    ) -> Hearing | None:
        """Make a request for speech; ``name``: what tells its text from others, where not all of it."""
        if not connection.open:
            return None
        world = self._world
        all_events = request.events == "all" and not connection.envelope
        hearing = Hearing(
            connection.number, request.id, name or request.text, all_events, request.stream and all_events, joined
        )
        batch = request.priority == "batch" and not request.more
        hearing.durable = batch if request.durable is UNSET else request.durable
        hearing.client, hearing.followed = connection.client.key, request.follow
        if request.deadline_s is not UNSET:
            hearing.gives_up_s = None if request.more else world.now + request.deadline_s
            hearing.takes_s = takes_s(request.text, world.scene)
            # The end of a durable job is told when it is on disk.
            hearing.deadline_at = world.now + request.deadline_s + (_DISK_S if hearing.durable else 0.0)
        self.put(connection, hearing)
        recording = None if request.prompt is UNSET else bytes(1_000)
        machine, before = world.machine, world.invariants.accepted
        world.happen(inputs.Requested(connection.client, connection.to, request, recording))
        if not world.dead and world.machine is machine:
            accepted = world.invariants.accepted - before
            self.accepted += accepted
            if accepted:
                world.invariants.admitted(connection.client, request)
        return hearing

    @property
    def reachable(self) -> list[Connection]:
        """The connections on which somebody asks."""
        return self._open

    def ask_for(self, connection: Connection, request: Any, body: bytes | None) -> Question:
        """A request about voices, or for speech with one; the question that it is, where it is not for speech."""
        question = Question(connection.number, request.id)
        if isinstance(request, requests.Synthesize):
            self.ask(connection, request, joined=False)
        elif connection.open:
            self.put(connection, question)
            self._world.happen(inputs.Requested(connection.client, connection.to, request, body))
        return question

    def _follow(self, connection: Connection, hearing: Hearing) -> None:
        """What clients do about a job that was accepted: theirs, and now and then somebody else's."""
        world = self._world
        rng = world.random
        own = [n for n, c in enumerate(self._open) if c.client.key == connection.client.key]
        if not own:
            return
        what = rng.random()
        place = rng.choice(own if rng.random() < 0.8 else range(len(self._open)))
        if what < 0.12 and "cancels" not in world.without:
            world.after(
                rng.expovariate(3),
                lambda: self._question(self._open[place], requests.Cancel(id="", v=1, job=hearing.job)),
            )
        elif what < 0.3:
            world.after(rng.choice((1, 1, 10)) * rng.expovariate(1), lambda: self._wait(self._open[place], hearing))
        elif what < 0.4:
            world.after(
                rng.expovariate(1),
                lambda: self._question(self._open[place], requests.GetJob(id="", v=1, job=hearing.job)),
            )
        elif what < 0.43:
            world.after(
                rng.expovariate(1), lambda: self._question(self._open[place], requests.ListJobs(id="", v=1, limit=20))
            )

    def _question(self, connection: Connection, request: requests.Cancel | requests.GetJob | requests.ListJobs) -> None:
        if connection.open:
            request = replace(request, id=self._world.id())
            self.put(connection, Question(connection.number, request.id))
            self._world.happen(inputs.Requested(connection.client, connection.to, request))

    def _wait(self, connection: Connection, of: Hearing) -> None:
        if not connection.open:
            return
        world = self._world
        request = requests.Wait(id=world.id(), v=1, job=of.job, events=world.random.choice(("all", "final")))
        all_events = request.events == "all" and not connection.envelope
        request.follow = of.followed and world.now % 1.0 < 0.7
        streams = (of.streams or request.follow) and all_events
        hearing = Hearing(connection.number, request.id, of.text, all_events, streams, True, of.job)
        if request.follow:
            # It hears all of it, or has it whole at the end.
            hearing.next_chunk = 0
        hearing.followed = of.followed
        hearing.waits_for, hearing.durable, hearing.client = of.job, of.durable, of.client
        hearing.stranger = connection.client.key != of.client
        self.put(connection, hearing)
        world.happen(inputs.Requested(connection.client, connection.to, request))


def _client(number: int) -> inputs.Client:
    return inputs.Client(f"uid:{1000 + number}", f"user{number}")
