"""Texts in pieces, as the clients of the simulation send them: steadily, at once, too much, or never the end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from glmtts.daemon.core import inputs
from glmtts.protocol import events, requests

from .accidents import plan
from .hearing import Hearing, Question

if TYPE_CHECKING:
    from .clients import Connection
    from .world import World

#: Of the requests for speech, in lives that have them.
_SHARE = 0.15
_PRIORITIES: tuple[requests.Priority, ...] = ("interactive", "interactive", "batch")


class Pieces:
    """Opens jobs and sends them their text. Draws apart, so that lives without it stay as they are."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"pieces {world.seed}")
        self._names = 0
        #: How many pieces were taken, and refused.
        self.taken = self.refused = 0

    def come(self, connection: Connection) -> bool:
        """Open a job in place of another request, or not."""
        world, rng = self._world, self._random
        if not world.scene.pieces or rng.random() >= _SHARE:
            return False
        self._names += 1
        name = f"{plan(rng, world.scene, world.without)} p{self._names}"
        pieces = [f"{name}. ", *self._sentences()]
        at_once = "" if rng.random() < 0.5 else pieces.pop(0)
        stream = rng.random() < 0.7
        request = requests.Synthesize(
            id=world.id(),
            v=1,
            text=at_once,
            more=True,
            stream=stream,
            priority="vip" if connection.client.user == "root" else rng.choice(_PRIORITIES),
            deadline_s=rng.uniform(0.1, 8) if rng.random() < 0.1 and "deadlines" not in world.without else UNSET,
            output=f"p{self._names}.wav" if not stream and rng.random() < 0.2 else UNSET,
            on_behalf_of=rng.choice("ab") if connection.client.key == "uid:1003" else UNSET,
        )
        hearing = world.clients.ask(connection, request, joined=False, name=name)
        if hearing is None or not hearing.job:
            return True
        hearing.said = at_once
        if rng.random() < 0.15:
            # The client has forgotten the rest.
            pieces = pieces[: rng.randrange(len(pieces) + 1)]
        else:
            pieces.append("")
        self._go_on(connection, hearing, pieces, rng.choice((0.0, 0.01, 0.2, 1.0)))
        return True

    def _sentences(self) -> list[str]:
        rng = self._random
        text = "".join("x" * rng.randint(1, 60) + ". " for _ in range(rng.choice((0, 1, 3, 8))))
        size = rng.choice((1, 7, 30, 6_000))
        if rng.random() < 0.02:
            text += "y" * 5_000
            size = max(30, size)
        return [text[start : start + size] for start in range(0, len(text), size)]

    def _go_on(self, connection: Connection, hearing: Hearing, pieces: list[str], pause_s: float) -> None:
        if pieces:
            delay = self._random.expovariate(1 / pause_s) if pause_s else 0.0
            self._world.after(delay, lambda: self._send(connection, hearing, pieces, pause_s))

    def _send(self, connection: Connection, hearing: Hearing, pieces: list[str], pause_s: float) -> None:
        world, rng = self._world, self._random
        connections = list(world.clients.connections.values())
        if not connection.open:
            mine = [c for c in connections if c.open and c.client.key == connection.client.key and not c.envelope]
            if not mine or rng.random() < 0.5:
                return
            connection = rng.choice(mine)
        text, *rest = pieces
        by = rng.choice([c for c in connections if c.open]) if rng.random() < 0.03 else connection
        if hearing.ended and rng.random() < 0.8:
            return
        request = requests.Text(
            id=world.id(), v=1, job=hearing.job, text=text, last=not text, flush=bool(text) and rng.random() < 0.05
        )
        question = Question(by.number, request.id)
        world.clients.put(by, question)
        world.happen(inputs.Requested(by.client, by.to, replace(request)))
        if isinstance(question.answer, events.Result):
            self.taken += 1
            hearing.said += text
        else:
            self.refused += 1
            if by is not connection:
                # It was somebody else's connection.
                rest = pieces
        self._go_on(connection, hearing, rest or ([""] if rng.random() < 0.1 else []), pause_s)
