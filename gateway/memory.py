"""The memory for bodies and files that requests hold: bounded over all, and for each address."""

from __future__ import annotations

from collections import Counter

from starlette.requests import HTTPConnection
from starlette.types import Scope

from .customers import Customers
from .errors import HttpError

#: Bodies of the largest size that there is memory for, over all and for one address.
_BODIES, _BODIES_OF_ONE = 8, 4
#: Bytes of each request that are not counted: a request without a recording is always read.
_FREE = 64 << 10


class Memory:
    """Counts the bytes that requests hold."""

    def __init__(self, customers: Customers, body_bytes: int) -> None:
        self._customers = customers
        self._most, self._most_of_one = _BODIES * body_bytes, _BODIES_OF_ONE * body_bytes
        self._held: Counter[str] = Counter()

    def share(self, scope: Scope) -> Share:
        """The share of a request, to be freed at its end."""
        return Share(self, scope)

    def address(self, scope: Scope) -> str:
        """Who holds what a request holds."""
        return self._customers.address(HTTPConnection(scope))

    def add(self, address: str, count: int) -> None:
        """Count bytes. Raises HttpError where there is no memory for them."""
        # The first one always fits: a file may be larger than all bodies.
        others, own = self._held.total(), self._held[address]
        if (own and own + count > self._most_of_one) or (others and others + count > self._most):
            message = (
                "this gateway holds as many recordings and files as it has memory for ([gateway] body_mib); send large "
                "bodies one after the other, and read answers as they come"
            )
            raise HttpError(503, message, code="unavailable", retryable=True, retry_after_s=1.0)
        self._held[address] += count

    def free(self, address: str, count: int) -> None:
        """Count bytes no more."""
        self._held[address] -= count
        if self._held[address] <= 0:
            del self._held[address]


class Share:
    """The bytes that one request holds."""

    def __init__(self, memory: Memory, scope: Scope) -> None:
        self._memory, self._scope = memory, scope
        self._address = ""
        self._bytes = self._counted = 0

    def another(self) -> Share:
        """A share beside this one, of the same request."""
        return self._memory.share(self._scope)

    def take(self, count: int) -> None:
        """Hold more bytes. Raises HttpError where there is no memory for them."""
        self._bytes += count
        more = self._bytes - _FREE - self._counted
        if more > 0:
            self._address = self._address or self._memory.address(self._scope)
            self._memory.add(self._address, more)
            self._counted += more

    def free(self) -> None:
        """Hold nothing any more."""
        if self._counted:
            self._memory.free(self._address, self._counted)
        self._bytes = self._counted = 0
