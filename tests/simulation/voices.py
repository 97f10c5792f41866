"""Voices that clients keep for themselves, and the disk that they are on, which outlives each daemon."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import requests
from glmtts.protocol import worker as wire

from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World

#: Requests about voices, in virtual seconds between two of one life; and what the check of a recording takes.
_EVERY_S, _CHECK_S = 1.5, 0.3
_NAMES = ("me", "you", "it", "tone")
_KIB = 1 << 10
#: Of what others leave, one client takes no more.
_PART = 0.8


class Voices:
    """Owns the disk, and asks for changes of it; draws random numbers of its own, so that other accidents stay."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(f"voices of {seed}")
        self.disk: dict[tuple[str, str], inputs.StoredVoice] = {}
        self._recordings = 0
        self._making: tuple[int, str] | None = None
        #: How many were kept, and refused.
        self.kept = self.refused = 0

    def begin_again(self) -> None:
        """The next daemon knows what is on the disk; a change that was under way is lost."""
        self._making = None

    # --- clients

    def act(self) -> None:
        """A client does something with voices, and the next one will."""
        world, rng = self._world, self._random
        if world.ending or "voices" in world.without:
            return
        connection = rng.choice(world.clients.reachable)
        for_customer = connection.client.key == "uid:1003" and rng.random() < 0.7
        keys: dict[str, Any] = {"on_behalf_of": rng.choice("abcd") if for_customer else UNSET}
        kind = rng.choices(("add", "remove", "list", "speak", "sample"), (5, 1, 1, 4, 1))[0]
        for _ in range(rng.choice((1, 1, 6))):
            body: bytes | None = None
            request: Any
            about: dict[str, Any] = {"id": world.id(), "v": 1, **keys}
            name = rng.choice(_NAMES)
            if kind == "add":
                body = bytes(rng.choice((1, 100, 400)) * _KIB)
                request = requests.VoiceAdd(
                    name=name, text=connection.client.key, consent=True, replace=rng.random() < 0.3, **about
                )
            elif kind == "remove":
                request = requests.VoiceRemove(name=name, **about)
            elif kind == "sample":
                request = requests.VoiceSample(name=name, **about)
            elif kind == "list":
                request = requests.Voices(**about)
            else:
                priority = "batch" if rng.random() < 0.3 else "interactive"
                text = f"ok voice{self._recordings}-{about['id']}"
                request = requests.Synthesize(text=text, voice=name, priority=priority, **about)  # type: ignore[arg-type]
            machine = world.machine
            question = world.clients.ask_for(connection, request, body)
            if kind == "add" and machine is world.machine and not world.dead:
                if question.answers:
                    self.refused += getattr(question.answer, "code", "") == "forbidden"
                elif connection.open:
                    self._admitted(connection.client.key, request.on_behalf_of)
        world.after(rng.expovariate(1 / _EVERY_S), self.act)

    def _admitted(self, gateway: str, customer: Any) -> None:
        """A voice was accepted: its client leaves room to the next one, and a gateway's customer to the next."""
        limits, shares = self._world.machine.settings.limits, self._world.machine.state.voices.own.shares
        together = shares.of_owner(gateway)
        most = _PART * ((limits.own_voices_mib << 20) - (shares.total - together))
        must(Rule.BOUNDED, together <= most, gateway, "has", together, "bytes of voices, and may have", most)
        if customer is not UNSET:
            own = shares.of(f"{gateway}/{customer}")
            must(Rule.BOUNDED, own <= _PART * most, customer, "has", own, "of", most, "bytes of its gateway's voices")

    # --- the disk

    def store(self, effect: effects.StoreVoice) -> None:
        """The core has a client's voice kept or removed: one at a time."""
        world, owner = self._world, effect.owner
        must(Rule.BOUNDED, self._making is None, "two changes of voices at a time:", self._making, effect.request)
        self._making = key = (effect.to.connection, effect.request.id)
        world.owed.add(key)
        world.later(self._random.expovariate(1 / _CHECK_S), lambda: self._made(effect, owner, key))

    def _made(self, effect: effects.StoreVoice, owner: str, key: tuple[int, str]) -> None:
        world, request = self._world, effect.request
        self._making = None
        world.owed.discard(key)
        stored = inputs.VoiceStored(effect.to, request.id, request.name, owner=owner)
        place = (owner, request.name)
        if self._random.random() < 0.1:
            stored.error = ("bad_audio", "the recording is silent")
        elif effect.recording is None:
            self.disk.pop(place, None)
        else:
            self._recordings += 1
            path = f"/own/{owner}/{request.name}/{self._recordings}"
            stored.voice = self.disk[place] = inputs.StoredVoice(
                request.name, path, "words", owner=owner, bytes=len(effect.recording)
            )
            self._look(owner)
        self.kept += stored.voice is not None
        world.happen(stored)

    def _look(self, owner: str) -> None:
        """No client has more than it may, and all together no more than there is room for."""
        limits = self._world.machine.settings.limits
        own = [name for client, name in self.disk if client == owner]
        must(Rule.BOUNDED, len(own) <= limits.own_voices, owner, "has the voices", own)
        total = sum(max(64 * _KIB, voice.bytes) for voice in self.disk.values())
        # A handler that raised may have lost a voice that is on disk, until the next start.
        within = total <= limits.own_voices_mib << 20 or self._world.bugs.met > 0
        must(Rule.BOUNDED, within, "own voices take", total, "bytes")

    def started(self, message: wire.SpeakJob, client: str) -> None:
        """A job speaks with a recording: its own client's, as it is now."""
        if message.recording is not None:
            voice = self.disk.get((client, message.voice or ""))
            right = voice is not None and voice.path == message.recording
            must(Rule.OWN_AUDIO, right, message.job, "of", client, "speaks with", message.recording)
