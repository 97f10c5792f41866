"""The addresses behind a name, and the first of them that accepts a connection.

ZeroMQ tries only the first address of a name. The name of a machine often has an IPv6 address first, while the daemon
listens on IPv4 alone; ``localhost`` is such a name. So the clients connect as other programs do (RFC 8305): all
addresses, each a moment after the one before.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import queue
import select
import socket
import threading
import time
from typing import Any

#: The time that an address has before the next one is tried beside it, and the time for the whole search, in seconds.
_AHEAD_S, _WITHIN_S = 0.25, 3.0

_LAST_PORT = 65_535

_Found = tuple[Any, ...]


def is_numeric(host: str) -> bool:
    """Whether ``host`` is an address, which is the same at every look-up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def reach(host: str, port: int) -> str:
    """The endpoint, with a numeric address, at which ``host`` accepts a connection; takes up to 3 s.

    Raises OSError; ``strerror`` says what is wrong, with the name.
    """
    if not 0 < port <= _LAST_PORT:
        raise OSError(errno.EINVAL, f"there is no port {port}: ports go from 1 to {_LAST_PORT}")
    deadline = time.monotonic() + _WITHIN_S
    if is_numeric(host):
        return _first(_look_up(host, port, socket.AI_NUMERICHOST), deadline)
    # A resolver that gets no answer waits for as long as its own configuration says. The thread is then left behind.
    answers: queue.SimpleQueue[list[_Found] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(_look_up(host, port))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=look_up, name="name lookup", daemon=True).start()
    try:
        answer = answers.get(timeout=_WITHIN_S)
    except queue.Empty:
        raise _unanswered(host) from None
    if isinstance(answer, OSError):
        raise answer
    return _first(answer, deadline + _WITHIN_S)


def _look_up(host: str, port: int, flags: int = 0) -> list[_Found]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise _unanswered(host) from None
        words = "is unknown: correct it, or enter it in /etc/hosts or in DNS"
        raise OSError(errno.EADDRNOTAVAIL, f"the name {host!r} {words}") from None
    except (UnicodeError, ValueError, OverflowError):
        raise OSError(errno.EINVAL, f"{host!r} can't be the name of a machine") from None


def _unanswered(host: str) -> OSError:
    words = "was not looked up, because no name server answers: see /etc/resolv.conf, or use the machine's address"
    return OSError(errno.EAGAIN, f"the name {host!r} {words}")


def _first(found: list[_Found], deadline: float) -> str:
    """The first of these addresses that accepts a connection, which is closed again. Raises OSError."""
    # The families take turns: a network without IPv6 costs one short wait, however many IPv6 addresses there are.
    first = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    waiting = [one for pair in zip(first, others, strict=False) for one in pair]
    waiting += first[len(others) :] + others[len(first) :]
    poller = select.poll()
    trying: dict[int, tuple[socket.socket, Any]] = {}
    failures: list[int] = []
    with contextlib.ExitStack() as stack:
        next_at = 0.0
        while waiting or trying:
            now = time.monotonic()
            if now >= deadline:
                break
            if waiting and (now >= next_at or not trying):
                family, kind, protocol, _, address = waiting.pop(0)
                next_at = now + _AHEAD_S
                try:
                    attempt = stack.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol))
                    code = attempt.connect_ex(address)
                except OSError as error:  # this machine knows no such family
                    failures.append(error.errno or errno.EAFNOSUPPORT)
                    continue
                if code == 0:
                    return _endpoint(address)
                if code == errno.EINPROGRESS:
                    trying[attempt.fileno()] = attempt, address
                    poller.register(attempt, select.POLLOUT)
                else:
                    failures.append(code)
                continue
            until = min(deadline, next_at) if waiting else deadline
            for fd, _ in poller.poll((until - now) * 1_000):
                poller.unregister(fd)
                attempt, address = trying.pop(fd)
                code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    return _endpoint(address)
                failures.append(code)
    # A machine that refuses says more than a network without a route.
    code = errno.ECONNREFUSED if errno.ECONNREFUSED in failures else (failures or [errno.ETIMEDOUT])[0]
    raise OSError(code, os.strerror(code))


def _endpoint(address: Any) -> str:
    host, port = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
