"""What a schema can't say: requests that are to succeed name a voice that is there, and have words to speak.

The rest of each request, and all of those that are to be refused, are as Schemathesis makes them.
"""

from __future__ import annotations

import secrets
from typing import Any

import schemathesis

_SPOKEN = {
    "deadline_s": 60,
    "sample_rate": 24_000,
    "input": "hello",
    "input_text": "hello",
    "voice": "",
    "speaker": "",
    "options": {},
    "ref_audio": "",
    "prompt_audio": "",
}


def _spoken(body: Any) -> Any:
    if isinstance(body, dict):
        return {
            key: [_spoken(item) for item in value] if key == "items" else _SPOKEN.get(key, value)
            for key, value in body.items()
        }
    return body


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Change a request that is to succeed."""
    if case.meta is None:
        return
    parts = [case.meta.generation, *case.meta.components.values()]
    if not all(part.mode.is_positive for part in parts):
        return
    if case.headers and "Range" in case.headers:
        case.headers["Range"] = "bytes=0-"
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = secrets.token_hex()
    if isinstance(case.body, dict) and not case.path.startswith("/v1/audio/voices"):
        case.body = _spoken(case.body)
