"""Names in the configuration that nobody has: probably misspelt, and what is said of them then holds for nobody.

They are no mistakes for certain: users come later, and from directories that don't answer just now. So the daemon
starts with them, and warns.
"""

from __future__ import annotations

import difflib
import pwd
import time
from collections.abc import Iterator

from ..core.settings import Settings
from .rules import KEY, key_in_toml
from .tcp_access import Access

#: Of a directory on the network that does not answer, each name may take many seconds.
_PATIENCE_S = 5.0


def named(settings: Settings) -> list[tuple[str, str]]:
    """Every key that names clients with each user or key of TCP that it names, but for uids and root, who need no entry
    anywhere; for a gateway's customer it is the gateway.
    """
    limits, classes = settings.limits, settings.queue.classes
    found = [("limits.gateways", name) for name in limits.gateways]
    found += [(f"limits.clients.{key_in_toml(name)}", name.partition("/")[0]) for name in limits.clients]
    for section in ("vip", "interactive", "batch"):
        found += [(f"queue.classes.{section}.users", name) for name in getattr(classes, section).users]
    return [(key, name) for key, name in found if name != "root" and not name.isdigit()]


def unknown(settings: Settings, access: Access | None) -> list[str]:
    """A line for each name that no user of this machine and no authorised key has, beginning with the key of the
    configuration; ``access`` is who may connect by TCP, None where nothing listens.
    """
    return list(_unknown(settings, access, time.monotonic() + _PATIENCE_S))


def _unknown(settings: Settings, access: Access | None, deadline: float) -> Iterator[str]:
    keys = set(access.names.values()) if access else set()
    known: dict[str, bool] = {}
    for key, name in named(settings):
        if name.startswith(KEY):
            if problem := _no_key(name.removeprefix(KEY), keys, access):
                yield f"{key}: {problem}"
            continue
        if name not in known:
            if time.monotonic() > deadline:
                yield f"{key}: this and further names were not looked up, because users are found very slowly"
                return
            known[name] = _is_user(name)
        if not known[name]:
            hint = f'; a client over TCP is written "{KEY}{name}"' if name in keys else ""
            yield f"{key}: this machine has no user {name!r}{hint}"


def _no_key(name: str, keys: set[str], access: Access | None) -> str:
    if name in keys:
        return ""
    if access is None:
        return f"no client has the key {name!r}, since tcp.listen is empty"
    near = difflib.get_close_matches(name, keys, 1, 0.6)
    hint = f'; did you mean "{KEY}{near[0]}"?' if near else ""
    return f"no key in {access.authorised_keys} has the name {name!r}{hint}"


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
