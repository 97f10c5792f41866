"""``python -m glmtts.daemon.config check [FILE] | keys [FILE] | default``: for ``glmttsctl config`` and ``key``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from glmtts.protocol.inherited import put_right

from ..core.settings import Settings
from .load import ConfigError, find, packaged_default, parse, read, read_text, state_dir
from .names import unknown_names
from .tcp_access import key_files


def _check(path: Path | None) -> int:
    try:
        config = read(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path or 'built-in defaults'}: good")
    for warning in unknown_names(config.settings, config.tcp):
        print(f"{path}: warning: {warning}", file=sys.stderr)
    return 0


def _print_key_files(path: Path | None) -> int:
    """Print where the key files are; they need not exist, because the caller may be about to make them."""
    try:
        settings = Settings() if path is None else parse(read_text(path))
        server, clients = key_files(settings.tcp, state_dir(settings))
    except ConfigError as error:
        print("\n".join(f"{path}: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    print(json.dumps({"server_key": str(server), "authorised_keys": str(clients)}))
    return 0


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    put_right()
    match arguments:
        case ["default"]:
            sys.stdout.write(packaged_default())
            return 0
        case ["check", *file] if len(file) <= 1:
            return _check(find(*file))
        case ["keys", *file] if len(file) <= 1:
            return _print_key_files(find(*file))
    print("usage: python -m glmtts.daemon.config check [FILE] | keys [FILE] | default", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
