"""The wire of the speech daemon: message types, codec and error codes, for the daemon and for clients.

docs/protocol.md is the same in words.
"""

from .errors import ErrorCode, RequestError
from .requests import VERSION

__all__ = ["VERSION", "ErrorCode", "RequestError"]
