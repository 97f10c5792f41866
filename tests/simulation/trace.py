"""The trace of a life, by which a seed's schedule is known again."""

from __future__ import annotations

from glmtts.daemon.core import effects


def name_of_effect(effect: effects.Effect, now: float) -> str:
    """What tells an effect from others, in short."""
    match effect:
        case effects.Send():
            event = effect.event
            return f"{now} {type(event).__name__} {event.id} {effect.to.connection} {len(effect.body or b'')}"
        case effects.Tell():
            return f"{now} {type(effect.message).__name__} {effect.incarnation} {getattr(effect.message, 'job', '')}"
        case _:
            return f"{now} {effect!r}"
