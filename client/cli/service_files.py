"""The files of the service for systemd: where they are installed, which were edited since, and how they are removed.

A list of the installed files has a hash of each: an edited file is neither overwritten nor removed. A service is
`glmtts`, `glmtts@NAME` for one of several on a machine, or `glmtts-gateway`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

#: The folder of the commands in the packaged units; the real one replaces it.
_PACKAGED_COMMANDS = "/opt/glmtts/bin/"
#: Names of instances that need no escapes in systemd's paths.
_INSTANCE = re.compile(r"[a-z0-9][a-z0-9_.]{0,31}")

#: The service of the HTTP gateway.
GATEWAY = "glmtts-gateway"

Action = Literal["put", "replace", "same", "keep", "conflict"]


class ServiceFilesError(Exception):
    """The files can't be installed or removed; the message says why, and what to do."""


@dataclass(frozen=True)
class File:
    """One file of a service. ``configuration``: it is there to be edited, and never replaced."""

    path: Path
    text: str
    configuration: bool = False


@dataclass
class Record:
    """What was installed: the hash of each file, the files of each service, and the folders made for them."""

    files: dict[str, str] = field(default_factory=dict)
    services: dict[str, list[str]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


def service_name(instance: str | None) -> str:
    """``glmtts``, or ``glmtts@NAME``. Raises ServiceFilesError."""
    if instance is None:
        return "glmtts"
    if not _INSTANCE.fullmatch(instance):
        raise ServiceFilesError(
            f"An instance can't be called {instance!r}: use up to 32 small letters, digits, dots and underscores."
        )
    return f"glmtts@{instance}"


def folder_name(service: str) -> str:
    """The name of its folders in /run and /var/lib: ``glmtts``, or ``glmtts-NAME``."""
    return service.replace("@", "-")


class Installation:
    """The service files under ``root``; units and the like are under ``prefix`` in it."""

    def __init__(self, root: Path = Path("/"), prefix: Path = Path("/usr/local")) -> None:
        self.root = root
        self._lib = self._at(prefix / "lib")
        self.list_file = self._at(prefix / "share/glmtts-supervisor/service-files.json")
        self.record = self._read_record()

    def _at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def files(self, service: str, configuration: str) -> list[File]:
        """Its files. ``configuration``: the text of the default one."""
        units = self._lib / "systemd/system"
        if service == GATEWAY:
            return [
                *(File(units / f"{GATEWAY}.{unit}", _unit(f"{GATEWAY}.{unit}")) for unit in ("service", "socket")),
                File(self._lib / f"sysusers.d/{GATEWAY}.conf", _packaged("gateway-sysusers.conf")),
                File(self._at(Path("/etc/glmtts/glmtts.toml")), configuration, configuration=True),
            ]
        _, _, instance = service.partition("@")
        kind = "glmtts@" if instance else "glmtts"
        folder = folder_name(service)
        return [
            *(File(units / f"{kind}.{unit}", _unit(f"{kind}.{unit}")) for unit in ("service", "socket")),
            File(self._lib / "sysusers.d/glmtts.conf", _packaged("sysusers.conf")),
            File(
                self._lib / f"tmpfiles.d/{folder}.conf",
                _packaged("tmpfiles.conf").replace("/run/glmtts ", f"/run/{folder} "),
            ),
            File(self._at(Path(f"/etc/glmtts/{instance or 'glmtts'}.toml")), configuration, configuration=True),
        ]

    def action(self, file: File) -> Action:
        """What the installation of one file would do now."""
        there = _hash_of(file.path)
        if there is None:
            return "put"
        if there == _hash(file.text):
            return "same"
        if file.configuration:
            return "keep"
        return "replace" if there == self.record.files.get(str(file.path)) else "conflict"

    def put(self, service: str, files: list[File]) -> None:
        """Install all files, or none if one was edited. Raises OSError, ServiceFilesError."""
        if conflicts := [str(file.path) for file in files if self.action(file) == "conflict"]:
            raise ServiceFilesError(
                "Nothing was done, because these files were edited and the changes would be lost: "
                f"{', '.join(conflicts)}. Put the changes into a drop-in (systemctl edit {service}.service), move the "
                "files away, and try again."
            )
        owned = self.record.services.setdefault(service, [])
        for file in files:
            action, path = self.action(file), str(file.path)
            if action in ("put", "replace"):
                self._make_folder(file.path.parent)
                # In the list first: a file that is found there after a crash is then known to be ours.
                self.record.files[path] = _hash(file.text)
                self._write_record()
                _write(file.path, file.text)
            if path in self.record.files and path not in owned:
                owned.append(path)
        self._write_record()

    def removable(self, service: str) -> tuple[list[Path], list[Path]]:
        """The files of a service that are removed with it, and those that stay because they were edited."""
        others = {path for name, paths in self.record.services.items() if name != service for path in paths}
        own = [path for path in self.record.services.get(service, []) if path not in others]
        there = [path for path in own if _hash_of(Path(path)) is not None]
        changed = [path for path in there if _hash_of(Path(path)) != self.record.files.get(path)]
        return [Path(path) for path in there if path not in changed], [Path(path) for path in changed]

    def remove(self, service: str) -> None:
        """Remove the files of a service, except for edited ones. Raises OSError."""
        for path in self.removable(service)[0]:
            path.unlink()
        del self.record.services[service]
        still = {path for paths in self.record.services.values() for path in paths}
        self.record.files = {path: hash for path, hash in self.record.files.items() if path in still}
        if not self.record.services:
            self.list_file.unlink(missing_ok=True)
        for folder in sorted(self.record.folders, key=len, reverse=True):
            # A folder with other files in it stays.
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        self.record.folders = [folder for folder in self.record.folders if Path(folder).is_dir()]
        if self.record.services:
            self._write_record()

    def _make_folder(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o755)
            path.chmod(0o755)
            self.record.folders.append(str(path))

    def _read_record(self) -> Record:
        try:
            values: dict[str, Any] = json.loads(self.list_file.read_text())
            return Record(dict(values["files"]), dict(values["services"]), list(values["folders"]))
        except FileNotFoundError:
            return Record()
        except (ValueError, LookupError, TypeError) as error:
            raise ServiceFilesError(
                f"{self.list_file}: damaged ({error}), so edited files of the service can't be told from others. Move "
                "it and the unit files away, and install the service again."
            ) from None

    def _write_record(self) -> None:
        self._make_folder(self.list_file.parent)
        record = self.record
        values = {"files": record.files, "services": record.services, "folders": record.folders}
        _write(self.list_file, json.dumps(values, indent=1) + "\n")


def commands_folder() -> Path:
    """The folder of glmttsd and glmttsctl of this installation. Raises ServiceFilesError where they are not there."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / "glmttsd").is_file() and (folder / "glmttsctl").is_file():
            return folder
    raise ServiceFilesError(
        f"There is no glmttsd beside {sys.executable}: install glmtts-supervisor with pip in the environment of the "
        "service, and use the glmttsctl of that environment."
    )


def closed_folder(path: Path) -> Path | None:
    """The first folder above ``path`` that other users can't enter; None if there is none."""
    for place in {path, path.resolve(), Path(sys.executable).resolve()}:
        for folder in reversed(place.parents):
            if not folder.stat().st_mode & 0o001:
                return folder
    return None


def _unit(name: str) -> str:
    return _packaged(name).replace(_PACKAGED_COMMANDS, f"{commands_folder()}/")


def _packaged(name: str) -> str:
    import glmtts.systemd

    # importlib.resources can't read every editable install.
    folders = [Path(folder) for folder in glmtts.systemd.__path__]
    return next(path for folder in folders if (path := folder / name).is_file()).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of(path: Path) -> str | None:
    """None if there is no such file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """In one step, and readable by all users."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
