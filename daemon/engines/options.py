"""The ``options`` of each engine, as types.

The daemon checks a request's options before it queues the job, so this module imports none of the engines' packages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from glmtts.protocol.codec import field_problem


class EspeakOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """Options of the ``espeak`` engine."""

    # espeak's own ranges and defaults.
    rate: Annotated[int, Meta(ge=80, le=450, description="words a minute")] = 175
    pitch: Annotated[int, Meta(ge=0, le=99, description="base pitch; 50 is normal")] = 50


FaultName = Literal[
    "audio",
    "sleep",
    "leak_vram",
    "leak_outside",
    "cache_vram",
    "use_vram",
    "oom_vram",
    "illegal_access",
    "leak_ram",
    "raise",
    "quote",
    "quote_fatal",
    "exit",
    "segv",
    "abort",
    "kill",
    "hang",
    "hang_gil",
    "beat_still",
    "runaway",
    "fork_child",
    "oom",
    "nan",
    "garbage",
    "flood_stdout",
]


class FaultOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """Options of the ``fault`` engine: the length of its tone, and the fault."""

    fault: Annotated[FaultName, Meta(description="what goes wrong; audio: nothing")] = "audio"
    seconds: Annotated[float, Meta(ge=0, le=3_600, description="of tone, or of sleep")] | None = None
    segments: Annotated[int, Meta(ge=1, le=10_000)] = 1
    rtf: Annotated[float, Meta(ge=0, le=1_000, description="synthesis takes this many times the audio's length")] = 0.0
    mib: Annotated[int, Meta(ge=0, le=1_048_576, description="that a leak keeps, or the job uses")] = 50
    after_segments: Annotated[int, Meta(ge=0, le=10_000, description="go wrong after that many segments")] = 0
    shared: Annotated[bool, Meta(description="go wrong in a step that all running jobs of the worker share")] = False
    recorded: Annotated[bool, Meta(description="the flight recorder has the step that goes wrong")] = True


class GlmttsOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """Options of the ``glmtts`` engine; the defaults are in ``[engine.glmtts]``."""

    use_phoneme: Annotated[bool, Meta(description="phonemes for rare characters; polyphones become choppy")] | None = (
        None
    )
    use_cache: (
        Annotated[bool, Meta(description="each segment is spoken with the ones before it as its prompt")] | None
    ) = None
    sampling: Annotated[Literal["ras", "topk"], Meta(description="ras avoids repetition, topk is simpler")] | None = (
        None
    )
    top_k: Annotated[int, Meta(ge=1, le=1_000, description="candidates for each token, for topk")] | None = None
    max_tokens: (
        Annotated[int, Meta(ge=0, le=10_000, description="most tokens of a segment, 25 a second; 0: 20 a text token")]
        | None
    ) = None


class ServerOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """Options of the ``server`` engine, sent to the server under the same names; it may have no use for them."""

    instructions: Annotated[str, Meta(max_length=4_096, description="how to speak, in words")] = ""
    language: Annotated[str, Meta(max_length=64, description="of the text, as the server names it")] = ""


OPTIONS: dict[str, type[Struct]] = {
    "espeak": EspeakOptions,
    "fault": FaultOptions,
    "glmtts": GlmttsOptions,
    "server": ServerOptions,
}


def check(engine: str, options: dict[str, Any]) -> str:
    """Why ``engine`` refuses ``options``, as ``options.seconds: expected ...``; ``""`` if it accepts them."""
    type_ = OPTIONS[engine]
    try:
        msgspec.convert(options, type_)
    except msgspec.ValidationError as error:
        return f"options.{field_problem(str(error), options, type_)}"
    return ""


def schema(engine: str) -> dict[str, Any]:
    """The JSON Schema of an engine's options."""
    return msgspec.json.schema(OPTIONS[engine], ref_template="#/$defs/{name}")
