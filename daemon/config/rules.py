"""What no single key can say: which settings contradict each other, or this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Set
from pathlib import Path

from glmtts.protocol import authorised_keys
from glmtts.protocol.audio_formats import ENCODER_RATES
from glmtts.protocol.endpoints import EVENTS, MAX_PATH_BYTES
from glmtts.protocol.requests import MAX_ON_BEHALF_OF

from ..core.scheduling.rate_limit import parse_rate
from ..core.settings import ClientLimits, FaultEngineSettings, GlmttsEngineSettings, LimitsSettings, Settings
from .tcp_access import parse_listen

#: A user name as the tools of Linux and directory services make them, or a uid; or the name of a client's key.
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,254}\$?")
#: What stands before the name of a client's key.
KEY = "key:"

#: UTF-8 takes at most this many bytes for a character (RFC 3629).
_BYTES_PER_CHARACTER = 4


def combinations(settings: Settings, given: Set[str]) -> list[str]:
    """The problems of settings that are right one by one, each line beginning with a key.

    ``given`` has the keys that the file sets: what is merely useless is refused only where somebody wrote it.
    """
    return [
        *_daemon(settings),
        *_engine(settings),
        *_workers(settings),
        *_queue(settings, given),
        *_limits(settings),
        *_audio(settings),
        *_metrics(settings),
        *_tcp(settings),
    ]


def _daemon(settings: Settings) -> Iterator[str]:
    daemon = settings.daemon
    yield from _absolute("daemon.runtime_dir", daemon.runtime_dir)
    yield from _absolute("daemon.state_dir", daemon.state_dir)
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
    if engine.python and not _is_executable(engine.python):
        yield f"engine.python: {engine.python} is not an executable file; name the interpreter by its absolute path"
    if not engine.warmup_text.strip():
        yield "engine.warmup_text: blank, and a worker is ready once it has spoken it; write a short sentence"
    if engine.name != "fault" and engine.fault != FaultEngineSettings():
        yield f'engine.fault: settings of the fault engine, but engine.name is "{engine.name}"; leave the section out'
    if engine.fault.start == "slow" and engine.fault.start_s == 0:
        yield 'engine.fault.start_s: 0 s, but engine.fault.start is "slow"; say how slow'
    # Unlike the fault engine's, its section may stay where another engine speaks: people switch to espeak and back.
    yield from _absolute("engine.glmtts.root", engine.glmtts.root)
    yield from _absolute("engine.glmtts.dictionary", engine.glmtts.dictionary)
    if engine.name == "glmtts":
        yield from _glmtts(engine.glmtts)


def _glmtts(glmtts: GlmttsEngineSettings) -> Iterator[str]:
    """What must be there for the engine to be started at all; glmtts/checkpoint.py looks closer."""
    if not glmtts.root:
        yield (
            'engine.glmtts.root: not set, but engine.name is "glmtts"; name the folder of the GLM-TTS checkout with '
            "its ckpt/ folder (docs/glmtts.md says how to install it)"
        )
    elif _is_absolute(glmtts.root) and not os.path.isdir(glmtts.root):  # noqa: PTH112 - says no where Path would raise
        yield (
            f"engine.glmtts.root: {_shown(glmtts.root)} is no folder that this user can see; name that of the GLM-TTS "
            "checkout (docs/glmtts.md says how to install it)"
        )
    if _is_absolute(glmtts.dictionary) and not os.path.isfile(glmtts.dictionary):  # noqa: PTH113 - as above
        yield (
            f"engine.glmtts.dictionary: {_shown(glmtts.dictionary)} is no file that this user can see; write it, with "
            'a JSON object such as {"弈": "<|I4|>"} in each line, or leave the key out'
        )


def _workers(settings: Settings) -> Iterator[str]:
    workers = settings.workers
    if isinstance(workers.gpus, list):
        if not workers.gpus:
            yield 'workers.gpus: an empty list; write "none" to use no GPU'
        if len(set(workers.gpus)) < len(workers.gpus):
            yield "workers.gpus: a GPU is named twice; workers.per_gpu puts several workers on each"
    if workers.max and workers.min > workers.max:
        yield f"workers.min: {workers.min} is more than workers.max = {workers.max}"
    restart = workers.restart
    if restart.backoff_initial_s > restart.backoff_max_s:
        yield (
            f"workers.restart.backoff_initial_s: {restart.backoff_initial_s:g} is more than "
            f"workers.restart.backoff_max_s = {restart.backoff_max_s:g}"
        )


def _queue(settings: Settings, given: Set[str]) -> Iterator[str]:
    queue = settings.queue
    if "queue.warn_waiting" in given and queue.warn_waiting > queue.max_waiting:
        yield (
            f"queue.warn_waiting: {queue.warn_waiting} is more than queue.max_waiting = {queue.max_waiting}, "
            "so nobody would ever be warned"
        )
    # One of one is the default, which of a single worker keeps none.
    if queue.interactive_workers > 1 and 0 < settings.workers.max <= queue.interactive_workers:
        yield (
            f"queue.interactive_workers: {queue.interactive_workers}, but workers.max = {settings.workers.max}, "
            "so that no worker is left for batch jobs; lower the one or raise the other"
        )
    for name in ("vip", "interactive", "batch"):
        yield from _users(f"queue.classes.{name}.users", getattr(queue.classes, name).users)


def _limits(settings: Settings) -> Iterator[str]:
    limits = settings.limits
    yield from _rates("limits", limits)
    yield from _users("limits.gateways", limits.gateways)
    for name, own in limits.clients.items():
        path = f"limits.clients.{key_in_toml(name)}"
        yield from _client_name(path, name, limits.gateways)
        yield from _rates(path, own)
    if limits.text_chars * _BYTES_PER_CHARACTER > limits.header_kib * 1024:
        needed = -(-limits.text_chars * _BYTES_PER_CHARACTER // 1024)
        yield (
            f"limits.text_chars: {limits.text_chars} characters can take {needed} KiB, but limits.header_kib is "
            f"{limits.header_kib}; raise the one or lower the other"
        )
    if limits.recordings_mib < limits.body_mib:
        yield (
            f"limits.recordings_mib: {limits.recordings_mib} is less than limits.body_mib = {limits.body_mib}, "
            "so that a recording of the largest size never fits"
        )
    if limits.recording_min_s > limits.recording_max_s:
        yield (
            f"limits.recording_min_s: {limits.recording_min_s:g} is more than "
            f"limits.recording_max_s = {limits.recording_max_s:g}"
        )


def _rates(path: str, limits: LimitsSettings | ClientLimits) -> Iterator[str]:
    for key, rate in (("rate", limits.rate), ("rate_batch", limits.rate_batch)):
        try:
            parse_rate(rate or "")
        except ValueError as error:
            yield f"{path}.{key}: {error}"


def _client_name(path: str, name: str, gateways: list[str]) -> Iterator[str]:
    """A client is a user, a key of TCP, or somebody for whom one of the two speaks as a gateway."""
    owner, slash, customer = name.partition("/")
    if name.startswith("uid:"):
        yield f"{path}: a uid is written as its number alone, as in [limits.clients.{owner[4:84] or '1000'}]"
    elif not _is_client(owner):
        yield f'{path}: neither a user name, a uid, "key:NAME" for a client over TCP, nor "GATEWAY/CUSTOMER"'
    elif slash and not 1 <= len(customer) <= MAX_ON_BEHALF_OF:
        yield f"{path}: behind the slash stands a customer of 1 to {MAX_ON_BEHALF_OF} characters, as in on_behalf_of"
    elif slash and not gateways:
        yield f"{path}: a gateway's customer, but limits.gateways is empty, so that nobody speaks for others"


def _audio(settings: Settings) -> Iterator[str]:
    audio = settings.audio
    rates = ENCODER_RATES.get(audio.default_format)
    if rates and audio.sample_rate not in rates:
        yield (
            f"audio.sample_rate: {audio.sample_rate} Hz can't be held by audio.default_format = "
            f'"{audio.default_format}"; it holds {", ".join(map(str, rates))}'
        )
    yield from _absolute("audio.outputs", audio.outputs)
    yield from _absolute("voices.folder", settings.voices.folder)


def _metrics(settings: Settings) -> Iterator[str]:
    if settings.metrics.listen:
        try:
            parse_listen(settings.metrics.listen)
        except ValueError as error:
            yield f"metrics.listen: {error}"


def _tcp(settings: Settings) -> Iterator[str]:
    tcp = settings.tcp
    if tcp.listen:
        try:
            parse_listen(tcp.listen)
        except ValueError as error:
            yield f"tcp.listen: {error}"
    yield from _absolute("tcp.server_key", tcp.server_key)
    yield from _absolute("tcp.authorised_keys", tcp.authorised_keys)


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and "\0" not in path


def _shown(path: str) -> str:
    """A path on one line, whatever it has in it."""
    return path if path.isprintable() else quoted(path)


def _absolute(key: str, folder: str) -> Iterator[str]:
    if "\0" in folder:
        yield f"{key}: has a NUL character in it"
    elif folder and not folder.startswith("/"):
        yield f"{key}: {folder!r} is relative, and a daemon has no folder to start from; write an absolute path"


def _users(key: str, users: list[str]) -> Iterator[str]:
    for user in users:
        if not _is_client(user):
            yield f"{key}: {user[:60]!r} is neither a user name nor a uid, nor {KEY} and the name of a client's key"


def _is_client(name: str) -> bool:
    """Whether this may be a user, a uid, or the name of a client's key."""
    if name.startswith(KEY):
        return authorised_keys.NAME.fullmatch(name.removeprefix(KEY)) is not None
    return _USER.fullmatch(name) is not None


def key_in_toml(name: str) -> str:
    """A key as TOML writes it: a strange one in quotes and cut."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) else quoted(name[:80])


def quoted(text: str) -> str:
    """A string as TOML writes it, on one line whatever it has in it."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _is_executable(path: str) -> bool:
    return "\0" not in path and path.startswith("/") and Path(path).is_file() and os.access(path, os.X_OK)


def _group_exists(group: str) -> bool:
    if group.isascii() and group.isdigit():
        return int(group) < 2**32 - 1
    import grp

    try:
        grp.getgrnam(group)
    except (KeyError, ValueError):
        return False
    return True
