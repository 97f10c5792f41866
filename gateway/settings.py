"""The section ``[gateway]`` of the configuration; the daemon reads the rest of the file."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

#: The file that is read if neither ``--config`` nor ``$GLMTTS_CONFIG`` names one.
SYSTEM_FILE = Path("/etc/glmtts/glmtts.toml")
#: OpenAI's names for voices, which programs send without asking.
OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip


class SettingsError(Exception):
    """The configuration can't be used; the message names the file and the key."""


class Settings(Struct, forbid_unknown_fields=True, frozen=True):
    """``[gateway]``; etc/glmtts.toml explains each key."""

    listen: str = "127.0.0.1:8080"
    endpoint: str = ""
    api_keys: str = ""
    anonymous: bool = False
    openwebui_secret: str = ""
    public_lists: bool = True
    cors_origins: list[str] = []
    trusted_proxies: list[str] = []
    voices: dict[str, str] = {}
    prompts_folder: str = ""
    body_mib: Annotated[int, Meta(ge=1, le=1_024)] = 32
    connections_per_address: Annotated[int, Meta(ge=1, le=100_000)] = 256


class Listen(Struct, frozen=True):
    """Where to listen: ``host`` and ``port``, or the ``path`` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return bool(self.path) or self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def parse_listen(listen: str) -> Listen:
    """Read ``address:port``, ``[address]:port`` or the absolute path of a unix socket. Raises SettingsError."""
    if listen.startswith("/"):
        return Listen(path=listen)
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not colon or not 0 <= number <= 65_535:
        raise SettingsError(
            f'listen: {listen!r} is no address; use "127.0.0.1:8080", "[::1]:8080", or the path of a unix socket'
        )
    return Listen(host=host, port=number)


def find(file: str | None) -> Path | None:
    """The configuration to read; None for the built-in defaults."""
    name = file or os.environ.get("GLMTTS_CONFIG") or (str(SYSTEM_FILE) if SYSTEM_FILE.exists() else "")
    return Path(name).absolute() if name else None


def read(path: Path | None) -> Settings:
    """Read and check ``[gateway]``. Raises SettingsError."""
    if path is None:
        return Settings()
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None
    try:
        settings = msgspec.convert(document.get("gateway", {}), Settings)
        parse_listen(settings.listen)
        if settings.prompts_folder and not (folder := Path(settings.prompts_folder)).is_dir():
            why = "there is no such folder" if folder.is_absolute() else "an absolute path is needed"
            raise SettingsError(f"prompts_folder: {settings.prompts_folder}: {why}")
        for network in settings.trusted_proxies:
            if network != "unix":
                ipaddress.ip_network(network)
    except (msgspec.ValidationError, ValueError, SettingsError) as error:
        raise SettingsError(f"{path}: [gateway] {error}") from None
    return settings
