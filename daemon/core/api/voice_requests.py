"""Requests about voices: those for all, which operators keep, and those that clients keep for themselves."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from glmtts.protocol import control, events, requests
from glmtts.protocol.errors import ErrorCode, RequestError

from ..effects import SendStored, StoreVoice
from ..inputs import Client, Controlled, ReplyTo, Requested, VoiceStored
from ..scheduling.admission import Admission
from ..state import State
from ..voices.own_voices import Change
from . import refusals
from .client_requests import ClientRequests

#: Seconds after which a change finds its turn, mostly: the check of a recording takes less.
_RETRY_S = 1.0


class VoiceRequests:
    """Answers ``voices``, ``voice_add``, ``voice_remove`` and ``voice_sample``."""

    def __init__(self, state: State, admission: Admission, client_requests: ClientRequests) -> None:
        self._state = state
        self._context, self._pool, self._job_table = state.context, state.pool, state.job_table
        self._voices, self._own = state.voices, state.voices.own
        self._admission = admission
        self._client_requests = client_requests

    # --- clients

    def list(self, event: Requested, request: requests.Voices) -> None:
        """Say which voices the client can name."""
        if (client := self._acting_for(event, request)) is not None:
            voices = self._voices.all_of(client.key)
            self._context.send(event.to, events.VoicesAnswer(id=request.id, voices=voices))

    def add(self, event: Requested, request: requests.VoiceAdd) -> None:
        """Keep a voice for a client alone; answered when it is on disk."""
        client = self._acting_for(event, request)
        if client is None:
            return
        try:
            self._check(client, request, event.body or b"")
        except RequestError as error:
            self._context.refuse(event.to, request.id, error.code, error.message, retry_after_s=error.retry_after_s)
            return
        self._wait(StoreVoice(event.to, request, event.body or b"", owner=client.key))

    def remove(self, event: Requested, request: requests.VoiceRemove) -> None:
        """Remove one of a client's own voices."""
        client = self._acting_for(event, request)
        if client is None:
            return
        if self._own.find(client.key, request.name) is None:
            message = f"name: you have no voice {request.name!r} of your own"
            if self._voices.is_for_all(request.name):
                message += "; the one of this name is for all clients, and an operator's"
            self._context.refuse(event.to, request.id, ErrorCode.VOICE_NOT_FOUND, message)
        elif not self._own.has_turn(client.key):
            self._busy(event.to, request.id)
        else:
            self._wait(StoreVoice(event.to, request, owner=client.key))

    def sample(self, event: Requested, request: requests.VoiceSample) -> None:
        """Send the recording of a voice that the client can name."""
        client = self._acting_for(event, request)
        if client is None:
            return
        voice = self._voices.find(client.key, request.name)
        if voice is not None:
            answer = events.VoiceSampleAnswer(
                id=request.id,
                name=voice.name,
                owner="own" if voice.owner else "shared",
                format=voice.path.rpartition(".")[2],
                text=voice.text,
                seconds=voice.seconds,
            )
            self._context.effects.append(SendStored(event.to, answer, voice.path))
            return
        message = f"name: there is no voice {request.name!r}; {self._voices.in_words(client.key)}"
        if request.name in self._pool.engine_voices:
            message = f"name: {request.name!r} is a voice of the engine itself, and no recording"
        self._context.refuse(event.to, request.id, ErrorCode.VOICE_NOT_FOUND, message)

    def _acting_for(self, event: Requested, request: Any) -> Client | None:
        """The client that asks, or for which a gateway asks; None where that is refused."""
        try:
            return refusals.acting_for(self._state, event.client, request)
        except RequestError as error:
            self._context.refuse(event.to, request.id, error.code, error.message)
            return None

    def _check(self, client: Client, request: requests.VoiceAdd, recording: bytes | memoryview) -> None:
        """Refuse a voice that the client may not have, or for which there is no room. Takes a token of its rate."""
        name, most = request.name, self._admission.allowance(client).own_voices
        if closed := self._client_requests.closed:
            raise RequestError(ErrorCode.SHUTTING_DOWN, closed)
        if not most:
            raise RequestError(ErrorCode.FORBIDDEN, "you may keep no voices of your own here ([limits] own_voices)")
        old = self._own.find(client.key, name)
        if old is None and self._voices.is_for_all(name):
            message = f"name: there is a voice {name!r} for all clients; choose another name"
            raise RequestError(ErrorCode.BAD_REQUEST, message)
        known = old is not None or self._own.is_coming(client.key, name)
        if known and not request.replace:
            message = f"name: you have a voice {name!r} already; send replace to put this one in its place"
            raise RequestError(ErrorCode.BAD_REQUEST, message)
        if not known and self._own.count(client.key) >= most:
            raise RequestError(ErrorCode.FORBIDDEN, self._no_more(client.key, most))
        of_all = self._context.settings.limits.own_voices_mib
        if self._own.needs(client.key, name, len(recording)) > self._own.room(client.key, of_all << 20):
            raise RequestError(ErrorCode.FORBIDDEN, self._no_room(client.key, of_all))
        if not self._own.has_turn(client.key):
            raise _busy()
        self._admission.check_recording(client, len(recording))
        self._admission.take_token(client)

    def _no_more(self, client: str, most: int) -> str:
        """Why a client that has as many voices as it may have gets no other one, and what to do."""
        words = f"you may have {most} voices of your own ([limits] own_voices)"
        if names := self._own.in_words(client):
            return f"{words} and have {names}; remove one of them, or replace one"
        return f"{words}, and as many are being added"

    def _no_room(self, client: str, of_all: int) -> str:
        """Why there is no room for a recording of a client, and what to do."""
        words = "there is no room for this recording: all clients' own voices may take "
        words += f"{of_all} MiB ([limits] own_voices_mib)"
        if names := self._own.in_words(client):
            mib = self._own.shares.of(client) / (1 << 20)
            return f"{words}, and yours take {mib:.1f} MiB; send a shorter one, or remove one of yours: {names}"
        return f"{words}, and others take nearly all of it; send a shorter one, or ask an operator for more room"

    def _wait(self, effect: StoreVoice) -> None:
        self._own.wait(effect)
        if effect.recording is not None:
            self._job_table.recordings.add(effect.owner, len(effect.recording))
        self._begin_next()

    def _begin_next(self) -> None:
        if (effect := self._own.next()) is not None:
            self._context.effects.append(effect)

    def _busy(self, to: ReplyTo, id: str) -> None:
        error = _busy()
        self._context.refuse(to, id, error.code, error.message, retry_after_s=error.retry_after_s)

    # --- operators

    def store(self, event: Controlled, request: control.VoiceAdd | control.VoiceRemove) -> None:
        """Keep or remove a voice for all, or remove a client's own; answered when that is done."""
        if isinstance(request, control.VoiceRemove) and request.client is not UNSET:
            if self._own.find(request.client, request.name) is None:
                message = f"name: the client {request.client} has no voice {request.name!r} of its own"
                self._context.refuse(event.to, request.id, ErrorCode.VOICE_NOT_FOUND, message)
            else:
                self._wait(StoreVoice(event.to, request, owner=request.client))
            return
        if isinstance(request, control.VoiceAdd) and request.name in self._pool.engine_voices:
            message = f"name: the engine has a voice {request.name!r} of its own; choose another name"
            self._context.refuse(event.to, request.id, ErrorCode.BAD_REQUEST, message)
            return
        self._context.effects.append(StoreVoice(event.to, request, event.body))

    # --- what became of it

    def on_stored(self, stored: VoiceStored) -> None:
        """A voice was added or removed, or that failed."""
        owner, name = stored.owner, stored.name
        if owner:
            self._end(stored.to, stored.id)
        kept = self._own.find(owner, name) if owner else self._voices.shared.get(name)
        error = stored.error
        if error is not None and error[0] == ErrorCode.VOICE_NOT_FOUND.value and kept is not None:
            # Its folder is gone already: there is nothing left to remove but the name.
            error = None
        whose = {"client": owner} if owner else {}
        if error is not None:
            code, message = error
            self._context.refuse(stored.to, stored.id, ErrorCode(code), message)
        elif stored.voice is None:
            if owner:
                self._own.remove(owner, name)
            else:
                self._voices.shared.pop(name, None)
            self._context.log("info", "voice removed", voice=name, **whose)
            self._answer(stored, name=name, removed=True)
        else:
            if owner:
                self._own.keep(stored.voice)
            else:
                self._voices.shared[name] = stored.voice
            self._context.log("info", "voice added", voice=name, seconds=stored.voice.seconds, **whose)
            values: dict[str, Any] = {"name": name, "seconds": stored.voice.seconds}
            if owner:
                values |= {"owner": "own", "created": stored.voice.added}
            if self._pool.engine and not self._pool.engine.clones_voices:
                values["warning"] = f"the engine {self._pool.engine.engine} can't use it: it does not clone voices"
            self._answer(stored, **values)
        self._begin_next()

    def ended(self, to: ReplyTo, id: str) -> None:
        """The change that a request asked for is over, without a word of what became of it: the next one begins."""
        self._end(to, id)
        self._begin_next()

    def awaits(self, to: ReplyTo, id: str) -> bool:
        """Whether a change is going to answer this request."""
        return self._own.awaits(to, id)

    def refuse_changes(self) -> None:
        """The daemon is about to end: what still waits is not done, or its end is not heard any more."""
        for change in self._own.take_all():
            self._forget_recording(change)
            message = "the daemon has stopped meanwhile; ask the next one for your voices, and send the change again"
            self._context.refuse(change.effect.to, change.effect.request.id, ErrorCode.SHUTTING_DOWN, message)

    def _end(self, to: ReplyTo, id: str) -> None:
        if (change := self._own.end(to, id)) is not None:
            self._forget_recording(change)

    def _forget_recording(self, change: Change) -> None:
        if change.effect.recording is not None:
            self._job_table.recordings.add(change.effect.owner, -change.recording_bytes)

    def _answer(self, stored: VoiceStored, **values: Any) -> None:
        self._context.send(stored.to, events.Result(id=stored.id, values=values))


def _busy() -> RequestError:
    message = "several changes of voices wait already; send more when one is answered"
    return RequestError(ErrorCode.QUEUE_FULL, message, retry_after_s=_RETRY_S)
