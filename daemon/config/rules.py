"""Rules that no single key can express: settings that contradict each other, or this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Iterator, Set

import msgspec

from glmtts.protocol import authorised_keys
from glmtts.protocol.audio_formats import ENCODER_RATES
from glmtts.protocol.endpoints import EVENTS, MAX_PATH_BYTES
from glmtts.protocol.requests import MAX_ON_BEHALF_OF
from glmtts.protocol.texts import TextError, speakable
from glmtts.protocol.toml_words import key_in_toml, quoted

from ..core.scheduling.rate_limit import parse_rate
from ..core.settings import ClientLimits, FaultEngineSettings, LimitsSettings, Settings, flat
from ..engines.server.rules import problems as server_problems
from .tcp_access import parse_listen

#: A user name as the tools of Linux and directory services make them, or a uid.
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,254}\$?")
#: The prefix of a client's key where clients are named.
KEY = "key:"

#: UTF-8 takes at most this many bytes for a character (RFC 3629).
_BYTES_PER_CHARACTER = 4

_PATHS = (
    *("daemon.runtime_dir", "daemon.state_dir", "engine.glmtts.root", "engine.glmtts.dictionary", "audio.outputs"),
    "engine.server.api_key_file",
    *("voices.folder", "tcp.server_key", "tcp.authorised_keys"),
)
#: The first of each pair may not be more than the second.
_ORDERED = (
    ("workers.min", "workers.max"),
    ("workers.restart.backoff_initial_s", "workers.restart.backoff_max_s"),
    ("queue.warn_waiting", "queue.max_waiting"),
    ("limits.recording_min_s", "limits.recording_max_s"),
)
_USERS = ("queue.classes.vip.users", "queue.classes.interactive.users", "queue.classes.batch.users", "limits.gateways")


def combinations(settings: Settings, given: Set[str]) -> list[str]:
    """The problems of settings that are valid one by one; each line begins with a key.

    Args:
        given: the keys in the file. A useless value is refused only where the file sets it.
    """
    return [
        *_tables(settings, given),
        *_daemon(settings),
        *_engine(settings),
        *_workers(settings),
        *_limits(settings),
        *_audio(settings),
    ]


def _tables(settings: Settings, given: Set[str]) -> Iterator[str]:
    values = flat(settings)
    for key in _PATHS:
        if "\0" in values[key]:
            yield f"{key}: contains a NUL character"
        elif values[key] and not values[key].startswith("/"):
            yield f"{key}: {values[key]!r} is relative, but a daemon has no working folder; write an absolute path"
    for low, high in _ORDERED:
        unlimited = high == "workers.max" and not values[high]
        useless = low == "queue.warn_waiting" and low not in given
        if values[low] > values[high] and not unlimited and not useless:
            yield f"{low}: {values[low]:g} is more than {high} = {values[high]:g}"
    for key in ("metrics.listen", "tcp.listen"):
        try:
            if values[key]:
                parse_listen(values[key])
        except ValueError as error:
            yield f"{key}: {error}"
    for key in _USERS:
        for user in values[key]:
            if not _is_client(user):
                yield f"{key}: {user[:60]!r} is neither a user name nor a uid, nor {KEY} and the name of a client's key"


def _daemon(settings: Settings) -> Iterator[str]:
    daemon = settings.daemon
    room = MAX_PATH_BYTES - len(f"/{EVENTS}")
    if len(os.fsencode(daemon.runtime_dir)) > room:
        yield f"daemon.runtime_dir: longer than {room} bytes, and the path of a socket has no room for more"
    if int(daemon.socket_mode, 8) & 0o600 != 0o600:
        yield f'daemon.socket_mode: {daemon.socket_mode} shuts the daemon\'s own user out; use "0660" or "0600"'
    for key, group in (("socket_group", daemon.socket_group), ("admin_group", daemon.admin_group)):
        if group and not _group_exists(group):
            yield f"daemon.{key}: this machine has no group {group!r}; make it with groupadd, or name another"


def _engine(settings: Settings) -> Iterator[str]:
    engine = settings.engine
    python = engine.python
    if python and not (python.startswith("/") and os.path.isfile(python) and os.access(python, os.X_OK)):  # noqa: PTH113 - as below
        yield f"engine.python: {python} is not an executable file; name the interpreter by its absolute path"
    try:
        speakable(engine.warmup_text)
    except TextError as error:
        yield f"engine.warmup_text: {error}, but a worker speaks it before it is ready; write a short sentence"
    if engine.name != "fault" and engine.fault != FaultEngineSettings():
        yield f'engine.fault: settings of the fault engine, but engine.name is "{engine.name}"; leave the section out'
    if engine.fault.start == "slow" and engine.fault.start_s == 0:
        yield 'engine.fault.start_s: 0 s, but engine.fault.start is "slow"; say how slow'
    if engine.name == "server":
        yield from server_problems(msgspec.to_builtins(engine.server), several=_several(settings))
        if engine.server.start_timeout_s >= settings.workers.start_timeout_s:
            yield (
                f"engine.server.start_timeout_s: {engine.server.start_timeout_s:g} s, but a worker is killed after "
                f"workers.start_timeout_s = {settings.workers.start_timeout_s:g} s; raise the one or lower the other"
            )
    if engine.name != "glmtts":
        return  # its section may stay, for those who switch to another engine and back
    root, dictionary = engine.glmtts.root, engine.glmtts.dictionary
    if not root:
        yield (
            'engine.glmtts.root: not set, but engine.name is "glmtts"; name the folder of the GLM-TTS checkout with '
            "its ckpt/ folder (docs/glmtts.md says how to install it)"
        )
    elif _is_absolute(root) and not os.path.isdir(root):  # noqa: PTH112 - Path would raise for a strange name
        yield (
            f"engine.glmtts.root: {_shown(root)} is not a folder that this user can see; name that of the GLM-TTS "
            "checkout (docs/glmtts.md says how to install it)"
        )
    if _is_absolute(dictionary) and not os.path.isfile(dictionary):  # noqa: PTH113 - as above
        yield (
            f"engine.glmtts.dictionary: {_shown(dictionary)} is not a file that this user can see; write it, with "
            'a JSON object such as {"弈": "<|I4|>"} in each line, or leave the key out'
        )


def _several(settings: Settings) -> bool:
    """Whether more than one worker is asked for; ``gpus = "all"`` may be one."""
    workers = settings.workers
    gpus = len(workers.gpus) if isinstance(workers.gpus, list) else 1
    return (workers.max or gpus * workers.per_gpu) > 1


def _workers(settings: Settings) -> Iterator[str]:
    workers, queue = settings.workers, settings.queue
    if isinstance(workers.gpus, list):
        if not workers.gpus:
            yield 'workers.gpus: an empty list; write "none" to use no GPU'
        if len(set(workers.gpus)) < len(workers.gpus):
            yield "workers.gpus: a GPU is named twice; workers.per_gpu puts several workers on each"
    # The default, 1, has no effect with a single slot.
    slots = workers.max * _slots_of_a_worker(settings)
    if queue.interactive_workers > 1 and 0 < slots <= queue.interactive_workers:
        yield (
            f"queue.interactive_workers: {queue.interactive_workers}, but workers.max = {workers.max}, "
            f"with {slots} slots in all, so no slot is left for batch jobs; lower the one or raise the other"
        )


def _slots_of_a_worker(settings: Settings) -> int:
    """How many jobs a worker speaks at once; 0 where it decides that itself."""
    engine = settings.engine
    match engine.name:
        case "fault":
            return engine.fault.slots
        case "server":
            return engine.server.slots
        case "glmtts" if engine.glmtts.batching == "on":
            return engine.glmtts.slots
        case _:
            return 1


def _limits(settings: Settings) -> Iterator[str]:
    limits = settings.limits
    yield from _rates("limits", limits)
    for name, own in limits.clients.items():
        path = f"limits.clients.{key_in_toml(name)}"
        yield from _client_name(path, name, limits.gateways)
        yield from _rates(path, own)
    needed = -(-limits.text_chars * _BYTES_PER_CHARACTER // 1024)
    if needed > limits.header_kib:
        yield (
            f"limits.text_chars: {limits.text_chars} characters can take {needed} KiB, but limits.header_kib is "
            f"{limits.header_kib}; raise the one or lower the other"
        )
    if limits.recordings_mib < limits.body_mib:
        yield (
            f"limits.recordings_mib: {limits.recordings_mib} is less than limits.body_mib = {limits.body_mib}, "
            "so a recording of the largest size never fits"
        )


def _rates(path: str, limits: LimitsSettings | ClientLimits) -> Iterator[str]:
    for key, rate in (("rate", limits.rate), ("rate_batch", limits.rate_batch)):
        try:
            parse_rate(rate or "")
        except ValueError as error:
            yield f"{path}.{key}: {error}"


def _client_name(path: str, name: str, gateways: list[str]) -> Iterator[str]:
    """A client is a user, a key of TCP, or a customer of a gateway, which is one of the two."""
    owner, slash, customer = name.partition("/")
    if name.startswith("uid:"):
        yield f"{path}: a uid is written as its number alone, as in [limits.clients.{owner[4:84] or '1000'}]"
    elif not _is_client(owner):
        yield f'{path}: neither a user name, a uid, "key:NAME" for a client over TCP, nor "GATEWAY/CUSTOMER"'
    elif slash and not 1 <= len(customer) <= MAX_ON_BEHALF_OF:
        yield f"{path}: the slash is followed by a customer of 1 to {MAX_ON_BEHALF_OF} characters, as in on_behalf_of"
    elif slash and gateways in ([], LimitsSettings().gateways) and owner not in {*gateways, *_operators()}:
        yield f"{path}: a gateway's customer, but limits.gateways has no {owner!r}, which may send requests for others"


def _operators() -> set[str]:
    """The names of root and of this process's user, who need not be named to send requests for others."""
    own = os.geteuid()
    names = {"root", "0", str(own)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(own).pw_name)
    return names


def _audio(settings: Settings) -> Iterator[str]:
    audio = settings.audio
    rates = ENCODER_RATES.get(audio.default_format)
    if rates and audio.sample_rate not in rates:
        yield (
            f"audio.sample_rate: {audio.sample_rate} Hz, which audio.default_format = "
            f'"{audio.default_format}" does not support; it supports {", ".join(map(str, rates))}'
        )


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and "\0" not in path


def _shown(path: str) -> str:
    """A path on one line, whatever characters it has."""
    return path if path.isprintable() else quoted(path)


def _is_client(name: str) -> bool:
    """Whether this may be a user, a uid, or the name of a client's key."""
    if name.startswith(KEY):
        return authorised_keys.NAME.fullmatch(name.removeprefix(KEY)) is not None
    return _USER.fullmatch(name) is not None


def _group_exists(group: str) -> bool:
    if group.isascii() and group.isdigit():
        return int(group) < 2**32 - 1
    import grp

    try:
        grp.getgrnam(group)
    except (KeyError, ValueError):
        return False
    return True
