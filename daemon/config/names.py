"""Users and keys that the configuration names but that do not exist: probably misspelt, and then without effect.

They may be right: a user can be added later, and a directory on the network can be down. So the daemon starts with
them, and warns.
"""

from __future__ import annotations

import difflib
import pwd
import time
from collections.abc import Iterator

from glmtts.protocol.toml_words import key_in_toml

from ..core.settings import LimitsSettings, Settings
from .rules import KEY
from .tcp_access import Access

#: No more names are looked up after this time: one may take many seconds if a directory does not answer.
_LIMIT_S = 5.0


def names_in(settings: Settings) -> list[tuple[str, str]]:
    """Each key of the configuration with each user or client key that it names.

    Uids and root need no entry anywhere, and are left out; a gateway's customer stands for the gateway.
    """
    limits, classes = settings.limits, settings.queue.classes
    found = [("limits.gateways", name) for name in limits.gateways if name not in LimitsSettings().gateways]
    found += [(f"limits.clients.{key_in_toml(name)}", name.partition("/")[0]) for name in limits.clients]
    for section in ("vip", "interactive", "batch"):
        found += [(f"queue.classes.{section}.users", name) for name in getattr(classes, section).users]
    return [(key, name) for key, name in found if name != "root" and not name.isdigit()]


def unknown_names(settings: Settings, access: Access | None) -> list[str]:
    """A line for each unknown user or client key, which begins with the key of the configuration.

    Args:
        access: the clients that may connect by TCP; None where nothing listens.
    """
    return list(_unknown(settings, access, time.monotonic() + _LIMIT_S))


def _unknown(settings: Settings, access: Access | None, deadline: float) -> Iterator[str]:
    keys = set(access.names.values()) if access else set()
    known: dict[str, bool] = {}
    for key, name in names_in(settings):
        if name.startswith(KEY):
            if problem := _no_key(name.removeprefix(KEY), keys, access):
                yield f"{key}: {problem}"
            continue
        if name not in known:
            if time.monotonic() > deadline:
                yield f"{key}: this and further names were not looked up, because the lookup of users is slow"
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
