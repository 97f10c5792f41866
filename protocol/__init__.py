"""The wire of the speech daemon: message types, codec and error codes, for the daemon and its clients.

docs/protocol.md describes it.
"""

from .errors import ErrorCode, RequestError
from .requests import VERSION

__all__ = ["VERSION", "ErrorCode", "RequestError"]
