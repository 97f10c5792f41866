"""Who asks: a key, a user that a key speaks for, or an address. The daemon's limits and shares go by that name."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from pathlib import Path
from stat import S_IWOTH
from urllib.parse import urlsplit

from msgspec import Struct
from starlette.requests import HTTPConnection
from starlette.types import Scope

from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey, ApiKeyProblem
from glmtts.protocol.requests import MAX_ON_BEHALF_OF

from . import user_tokens
from .errors import HttpError
from .settings import Settings, SettingsError

_log = logging.getLogger("glmtts.gateway")

#: Headers in which a chat front end names its user (Open WebUI, ENABLE_FORWARD_USER_INFO_HEADERS).
_USER_HEADER, _OPENWEBUI_HEADER, _OPENWEBUI_TOKEN = "x-glmtts-user", "x-openwebui-user-id", "x-openwebui-user-jwt"
#: A shorter secret could be guessed.
_LEAST_SECRET = 16
#: The cookie that the page's key is in.
COOKIE = "glmtts_key"
#: Methods that change nothing.
_READING = ("GET", "HEAD", "OPTIONS")
#: Begins the name of a user whose own can't be shown, and no other.
_HASHED = "sha256:"
#: An IPv6 customer has at least this much of the address space, and can't have a share for each address in it.
_IPV6_PREFIX = 64


class Customer(Struct, frozen=True):
    """``name``: the daemon's ``on_behalf_of``. ``priorities``: the classes that it may use."""

    name: str
    priorities: tuple[str, ...]
    has_key: bool

    def check_priority(self, priority: str) -> None:
        """Raise HttpError for a class that it may not use."""
        if priority not in self.priorities:
            allowed = ", ".join(self.priorities)
            message = f"priority: {priority} is not for this customer, which may use {allowed}"
            raise HttpError(403, message, code="forbidden", param="priority")


class Customers:
    """Knows the keys, and reads their file again when it has changed."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys and the secret. Raises SettingsError, ApiKeyProblem and OSError."""
        self._settings = settings
        self._secret = _secret_in(settings.openwebui_secret) if settings.openwebui_secret else b""
        self._file = Path(settings.api_keys) if settings.api_keys else None
        self._keys: list[ApiKey] = []
        self._read_at: tuple[int, int] | None = None
        self._proxies = [ipaddress.ip_network(network) for network in settings.trusted_proxies if network != "unix"]
        if self._file is not None:
            self._read(self._file)

    @property
    def needs_key(self) -> bool:
        """Whether a request without a key is refused."""
        return self._file is not None and not self._settings.anonymous

    @property
    def has_keys(self) -> bool:
        """Whether there are keys at all."""
        return self._file is not None

    def of(self, request: HTTPConnection) -> Customer:
        """The customer of a request. Raises HttpError."""
        key = _key_of(request)
        if key is None:
            # A browser sends the cookie, and its user's address, for a page of any site: only the gateway's own page
            # may change something so. A key in a header was put there by the program itself.
            if request.scope["type"] == "websocket" or request.scope.get("method") not in _READING:
                self.check_origin(request)
            key = request.cookies.get(COOKIE) if self._file is not None else None
        if key is not None:
            return self._with_key(key, request)
        if self.needs_key:
            raise HttpError(
                401,
                "this service needs an API key: send it as 'Authorization: Bearer glm-...'",
                code="no_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Customer(f"ip:{self.address(request)}", ("interactive", "batch"), has_key=False)

    def _with_key(self, key: str, request: HTTPConnection) -> Customer:
        if self._file is None:
            # Programs send one even where none is needed: OpenAI's packages don't start without.
            return Customer(f"ip:{self.address(request)}", ("interactive", "batch"), has_key=False)
        found = self.check_key(key)
        name = found.name
        if found.forwards_users and (user := self._user_of(request)):
            name = _name_of(name, user)
        return Customer(name, found.priorities, has_key=True)

    def _user_of(self, request: HTTPConnection) -> bytes:
        """The user that the customer names, as it came; empty for none. Raises HttpError."""
        user = request.headers.get(_USER_HEADER, "")
        token = request.headers.get(_OPENWEBUI_TOKEN)
        if self._secret and token is not None and not user:
            found = user_tokens.user_of(token, self._secret)
            if found is None:
                message = (
                    "X-OpenWebUI-User-Jwt: this token has expired, or is signed with another secret than the one in "
                    "the file [gateway] openwebui_secret"
                )
                raise HttpError(401, message, code="invalid_user_token")
            return found.encode("utf-8", "surrogatepass")
        if not self._secret:
            user = user or request.headers.get(_OPENWEBUI_HEADER, "")
        # Headers are decoded byte by byte.
        return user.encode("latin-1")

    def check_key(self, key: str) -> ApiKey:
        """What the file says of a key. Raises HttpError for one that is not in it."""
        if self._file is None:
            raise HttpError(400, "key: this service has no keys, and needs none", param="key")
        self._read_again(self._file)
        found = api_keys.find(self._keys, key)
        if found is None:
            message = "this API key is unknown; the operator of this service makes one with 'glmttsctl apikey new NAME'"
            raise HttpError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return found

    def check_origin(self, request: HTTPConnection) -> None:
        """Refuse what a browser sends for a page of another site. Raises HttpError.

        Programs that are no browser name no origin; with a cookie they have to.
        """
        origin = request.headers.get("origin")
        if origin is None:
            if COOKIE not in request.cookies:
                return
        elif origin in self._settings.cors_origins:
            return
        else:
            hosts = [request.headers.get("host", "")]
            if self.from_proxy(request.scope) and (forwarded := request.headers.get("x-forwarded-host")):
                hosts.append(forwarded.rpartition(",")[2].strip())
            parts = urlsplit(origin)
            if parts.scheme in ("http", "https") and any(parts.netloc == _plain(host, parts.scheme) for host in hosts):
                return
        message = (
            "a page of another site can't do this (the header Origin is not this service's address); a proxy has to "
            "pass the header Host on, and [gateway] cors_origins lists other sites that may"
        )
        raise HttpError(403, message, code="forbidden")

    def is_secure(self, request: HTTPConnection) -> bool:
        """Whether the visitor's browser speaks https, to this process or to a trusted proxy."""
        if self.from_proxy(request.scope) and (forwarded := request.headers.get("x-forwarded-proto")):
            return forwarded.rpartition(",")[2].strip().lower() == "https"
        return request.url.scheme in ("https", "wss")

    def from_proxy(self, scope: Scope) -> bool:
        """Whether a trusted proxy sends this."""
        peer = scope["client"][0] if scope.get("client") else ""
        return self._is_trusted(peer) if peer else "unix" in self._settings.trusted_proxies

    def address(self, request: HTTPConnection) -> str:
        """The address that a request comes from: the peer's, or what trusted proxies say of it."""
        hops = [hop.strip() for line in request.headers.getlist("x-forwarded-for") for hop in line.split(",")]
        peer = request.client.host if request.client else ""
        trusted = self.from_proxy(request.scope)
        # From the right: everything left of the first address that no trusted proxy has written may be invented.
        while trusted and hops:
            peer = _without_port(hops.pop())
            trusted = self._is_trusted(peer)
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return "local"
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False).network_address)
        return str(address)

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def _read(self, file: Path) -> None:
        stat = file.stat()
        if stat.st_mode & S_IWOTH:
            _log.warning("%s can be written by every user of this machine, who can so make keys: chmod o-w", file)
        self._keys = api_keys.parse(file.read_text(encoding="utf-8"))
        self._read_at = (stat.st_mtime_ns, stat.st_ino)

    def reload(self) -> None:
        """Read the file of keys again, even if it looks the same."""
        self._read_at = None
        if self._file is not None:
            self._read_again(self._file)

    def _read_again(self, file: Path) -> None:
        try:
            found = _version(file)
            if found != self._read_at:
                # A mistake is said once, and not at each request.
                self._read_at = found
                self._read(file)
                _log.info("read %d API keys from %s", len(self._keys), file)
        except (OSError, ApiKeyProblem, UnicodeDecodeError) as error:
            # Those that were read before stay in force: a mistake in the file locks no customer out.
            _log.error("API keys can't be read from %s, the old ones stay in force: %s", file, error)


def _version(file: Path) -> tuple[int, int]:
    """Changes when the file does, and when it is gone or is there again."""
    try:
        stat = file.stat()
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_ino)


def _name_of(key: str, user: bytes) -> str:
    """The customer that is a user of a key: another one for each ``user``, and always fit for a line of a log."""
    try:
        shown = user.decode()
    except UnicodeDecodeError:
        shown = ""
    name = f"{key}/{shown}"
    if shown.isprintable() and shown and not shown.startswith(_HASHED) and len(name) <= MAX_ON_BEHALF_OF:
        return name
    # Left out, characters would make two users one.
    return f"{key}/{_HASHED}{hashlib.sha256(user).hexdigest()[:32]}"


def _without_port(hop: str) -> str:
    """An address of X-Forwarded-For; some proxies write its port too (``1.2.3.4:567``, ``[::1]:567``)."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _key_of(request: HTTPConnection) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or None


def _plain(host: str, scheme: str) -> str:
    """A host as browsers write it in an origin: without the port that the scheme has anyway."""
    return host.lower().removesuffix({"http": ":80", "https": ":443"}[scheme])


def _secret_in(file: str) -> bytes:
    try:
        secret = Path(file).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"gateway.openwebui_secret: {file}: {error.strerror}") from None
    if len(secret) < _LEAST_SECRET:
        message = f"has {len(secret)} bytes; a secret of fewer than {_LEAST_SECRET} can be guessed"
        raise SettingsError(f"gateway.openwebui_secret: {file} {message}")
    return secret
