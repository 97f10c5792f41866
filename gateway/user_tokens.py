"""The token in which Open WebUI names its user (``X-OpenWebUI-User-Jwt``): HS256, with the secret that both know."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from typing import Any

import msgspec

#: Seconds by which the clocks of the two machines may differ.
_SKEW_S = 60.0
_MAX_TOKEN = 8_192


def user_of(token: str, secret: bytes, now: float | None = None) -> str | None:
    """The user of a token (``sub``), or None for one that is forged, expired, or none at all.

    ``now``: seconds since 1970.
    """
    signed, _, signature = token.rpartition(".")
    head, _, claims = signed.partition(".")
    expected = hmac.digest(secret, signed.encode("latin-1", "replace"), "sha256")
    try:
        if len(token) > _MAX_TOKEN or not hmac.compare_digest(_decoded(signature), expected):
            return None
        header: Any = msgspec.json.decode(_decoded(head))
        values: Any = msgspec.json.decode(_decoded(claims))
        # Only one kind of signature was checked: a token that names another was not signed for this.
        if header["alg"] != "HS256" or float(values["exp"]) < (time.time() if now is None else now) - _SKEW_S:
            return None
        # Another type than RFC 7519 allows, such as null, would be one user for all.
        return values["sub"] if isinstance(values["sub"], str) and values["sub"] else None
    except (binascii.Error, ValueError, TypeError, KeyError, RecursionError, msgspec.DecodeError):
        return None


def _decoded(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
