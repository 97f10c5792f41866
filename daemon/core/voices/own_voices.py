"""Voices that clients keep for themselves: whose each is, what they take, and the changes that wait for the disk."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from itertools import islice

from msgspec import Struct

from ..effects import StoreVoice
from ..inputs import ReplyTo, StoredVoice
from ..shares import Shares, owner_of, part_of_free

#: Voices that an error names.
_NAMED = 12
#: The least that a voice counts, in bytes: small ones take memory, blocks and inodes.
_LEAST_BYTES = 64 << 10
#: Changes that may wait, of all clients, of an owner with all its customers, and of one client.
_MAX_WAITING, _MAX_OF_OWNER, _MAX_OF_CLIENT = 64, 48, 4


class Change(Struct):
    """A voice to be kept or removed. ``charged``: bytes by which the client's share has grown for it already."""

    effect: StoreVoice
    charged: int = 0

    @property
    def recording_bytes(self) -> int:
        """Bytes of the recording that waits with it."""
        return len(self.effect.recording) if self.effect.recording is not None else 0

    def answers(self, to: ReplyTo, id: str) -> bool:
        """Whether its end answers this request."""
        return self.effect.to == to and self.effect.request.id == id


class OwnVoices:
    """Owns every client's own voices by client and name. One change is made at a time, and clients take turns."""

    def __init__(self, voices: Iterable[StoredVoice]) -> None:
        self._of: dict[str, dict[str, StoredVoice]] = {}
        #: Bytes, those of voices that wait to be kept included.
        self.shares = Shares()
        self._waiting: OrderedDict[str, deque[Change]] = OrderedDict()
        #: How many changes wait or are made, by client.
        self._changes = Shares()
        self.running: Change | None = None
        for voice in voices:
            self._of.setdefault(voice.owner, {})[voice.name] = voice
            self.shares.add(voice.owner, charge(voice.bytes))

    def find(self, client: str, name: str) -> StoredVoice | None:
        """A client's own voice of this name."""
        return self._of.get(client, {}).get(name)

    def of(self, client: str) -> list[StoredVoice]:
        """A client's own voices."""
        return list(self._of.get(client, {}).values())

    def in_words(self, client: str) -> str:
        """The names of a client's own voices, for an error that asks it to remove one."""
        return in_words(self._of.get(client, {}))

    def count(self, client: str) -> int:
        """How many voices a client has, those that are being added included."""
        kept = self._of.get(client, {})
        return len(kept) + len(self._names_to_come(client) - kept.keys())

    def _changes_of(self, client: str) -> list[Change]:
        """A client's changes that wait, and the one that is made."""
        changes = [*self._waiting.get(client, ())]
        if self.running is not None and self.running.effect.owner == client:
            changes.append(self.running)
        return changes

    def _names_to_come(self, client: str) -> set[str]:
        changes = self._changes_of(client)
        return {change.effect.request.name for change in changes if change.effect.recording is not None}

    def is_coming(self, client: str, name: str) -> bool:
        """Whether a voice of this name is being added."""
        return name in self._names_to_come(client)

    def room(self, client: str, most: int) -> int:
        """Bytes that a client's next voice may take, where those of all clients may take ``most``."""
        free = most - self.shares.total
        owner = owner_of(client)
        own, together = self.shares.of(client), self.shares.of_owner(owner)
        room = min(free, part_of_free(together, free))
        # A gateway's customers share its room in the same way.
        return room if client == owner else min(room, part_of_free(own, together - own + room))

    def needs(self, client: str, name: str, size: int) -> int:
        """Bytes by which a recording of ``size`` bytes adds to a client's share, in place of one of its name.

        That is the smallest which its turn may find there: a change before it can be a removal, and each can fail.
        """
        old = self.find(client, name)
        found = [charge(old.bytes) if old else 0]
        for change in self._changes_of(client):
            if change.effect.request.name == name:
                found.append(0 if change.effect.recording is None else charge(change.recording_bytes))
        return max(0, charge(size) - min(found))

    def has_turn(self, client: str) -> bool:
        """Whether one more change of this client may wait."""
        if self._changes.total >= _MAX_WAITING or self._changes.of(client) >= _MAX_OF_CLIENT:
            return False
        return self._changes.of_owner(owner_of(client)) < _MAX_OF_OWNER

    def wait(self, effect: StoreVoice) -> None:
        """A change waits for its turn."""
        change = Change(effect)
        if effect.recording is not None:
            change.charged = self.needs(effect.owner, effect.request.name, change.recording_bytes)
            self.shares.add(effect.owner, change.charged)
        self._changes.add(effect.owner, 1)
        self._waiting.setdefault(effect.owner, deque()).append(change)

    def next(self) -> StoreVoice | None:
        """The change whose turn it is; None while another one is made."""
        if self.running is not None or not self._waiting:
            return None
        client, changes = next(iter(self._waiting.items()))
        self.running = changes.popleft()
        if changes:
            self._waiting.move_to_end(client)
        else:
            del self._waiting[client]
        return self.running.effect

    def end(self, to: ReplyTo, id: str) -> Change | None:
        """The change that this request asked for has ended, well or not; None if it is not the one that is made."""
        change = self.running
        if change is None or not change.answers(to, id):
            return None
        self.running = None
        self._uncount(change)
        return change

    def _uncount(self, change: Change) -> None:
        self._changes.add(change.effect.owner, -1)
        self.shares.add(change.effect.owner, -change.charged)

    def awaits(self, to: ReplyTo, id: str) -> bool:
        """Whether a change that waits, or is made, is going to answer this request."""
        return any(change.answers(to, id) for change in self._all_changes())

    def keep(self, voice: StoredVoice) -> None:
        """A voice is on disk, in place of one of its name."""
        self.remove(voice.owner, voice.name)
        self._of.setdefault(voice.owner, {})[voice.name] = voice
        self.shares.add(voice.owner, charge(voice.bytes))

    def remove(self, client: str, name: str) -> None:
        """A voice is gone, if there was one."""
        voices = self._of.get(client, {})
        voice = voices.pop(name, None)
        if voice is not None:
            self.shares.add(client, -charge(voice.bytes))
            if not voices:
                del self._of[client]

    @property
    def recording_bytes(self) -> int:
        """Bytes of the recordings that wait to be kept."""
        return sum(change.recording_bytes for change in self._all_changes())

    def _all_changes(self) -> list[Change]:
        changes = [change for waiting in self._waiting.values() for change in waiting]
        return changes if self.running is None else [*changes, self.running]

    def take_all(self) -> list[Change]:
        """Every change that waits or is made; none of them does any more."""
        changes = self._all_changes()
        self.running = None
        self._waiting.clear()
        for change in changes:
            self._uncount(change)
        return changes

    def describe(self) -> dict[str, int]:
        """How many entries each of its parts has."""
        waiting = self._changes.total
        return {"own_voices": sum(map(len, self._of.values())), "voice_changes": waiting}


def charge(size: int) -> int:
    """What a recording of ``size`` bytes counts."""
    return max(size, _LEAST_BYTES)


def in_words(names: Collection[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(islice(names, _NAMED))}{more}"
