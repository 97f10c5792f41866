"""The answer to ``usage``: a client's own, a gateway's by customer, and for operators everyone's."""

from __future__ import annotations

from itertools import islice

from msgspec import UNSET

from glmtts.protocol import control, events, requests
from glmtts.protocol.errors import ErrorCode, RequestError

from ..inputs import Client, ReplyTo, UsageRow
from ..jobs.usage import date_of, day_of
from ..shares import owner_of
from ..state import State
from . import refusals

_DAY_S = 86_400


class UsageReport:
    """Reads the usage; it changes nothing."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._context, self._usage = state.context, state.usage

    def usage(self, to: ReplyTo, request: requests.Usage | control.Usage, client: Client | None) -> None:
        """The rows that the client may see, the newest day first; ``client`` is None for an operator."""
        try:
            asker = None
            if client is not None and isinstance(request, requests.Usage):
                asker = refusals.acting_for(self._state, client, request)
            since = self._since(request)
        except RequestError as error:
            self._context.refuse(to, request.id, error.code, error.message)
            return
        wanted = request.client if isinstance(request, control.Usage) and request.client is not UNSET else None
        seen = (row for row in self._usage.rows(since) if _is_of(row.client, asker, wanted))
        found = list(islice(seen, request.limit + 1))
        days = [_described(row, with_client=asker is None) for row in found[: request.limit]]
        more = len(found) > request.limit
        self._context.send(to, events.UsageAnswer(id=request.id, days=days, more=more or UNSET))

    def _since(self, request: requests.Usage | control.Usage) -> int:
        kept = int(self._context.wall // _DAY_S) - self._context.settings.limits.usage_days + 1
        if request.since is UNSET:
            return kept
        try:
            return max(kept, day_of(request.since))
        except (ValueError, OverflowError):
            message = "since: this is no date such as 2026-11-30, nor seconds since 1970"
            raise RequestError(ErrorCode.BAD_REQUEST, message) from None


def _is_of(key: str, asker: Client | None, wanted: str | None) -> bool:
    if asker is None:
        return wanted is None or wanted in (key, owner_of(key))
    return key == asker.key if asker.on_behalf_of else asker.owner == owner_of(key)


def _described(row: UsageRow, *, with_client: bool) -> events.UsageDay:
    spoken, (_, slash, customer) = row.spoken, row.client.partition("/")
    return events.UsageDay(
        day=date_of(row.day),
        jobs=spoken.jobs,
        characters=spoken.characters,
        audio_s=round(spoken.audio_s, 3),
        on_behalf_of=customer if slash else UNSET,
        client=row.client if with_client else UNSET,
    )
