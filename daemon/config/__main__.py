"""``python -m glmtts.daemon.config``: checks a configuration without starting anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..core.settings import Settings
from . import names, tcp_access
from .load import ConfigError, load, named, packaged_default, parse, read_file, state_dir


def _print_key_files(path: Path | None) -> int:
    """The files need not be there: this is asked by who is about to make them."""
    try:
        settings = Settings() if path is None else parse(read_file(path))
    except ConfigError as error:
        print("\n".join(f"{path}: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    found = tcp_access.files(settings.tcp, state_dir(settings))
    print(json.dumps({"server_key": str(found.server_key), "authorised_keys": str(found.authorised_keys)}))
    return 0


def _asked(arguments: list[str]) -> Path | None:
    return named(arguments[1] if len(arguments) > 1 else None)


def main(arguments: list[str]) -> int:
    """``check [FILE]``, ``keys [FILE]`` or ``default``; the exit status."""
    match arguments:
        case ["default"]:
            sys.stdout.write(packaged_default())
            return 0
        case ["check"] | ["check", _]:
            path = _asked(arguments)
            try:
                loaded = load(path)
            except ConfigError as error:
                print(error, file=sys.stderr)
                return 2
            print(f"{path or 'built-in defaults'}: good")
            for warning in names.unknown(loaded.settings, loaded.tcp):
                print(f"{path}: warning: {warning}", file=sys.stderr)
            return 0
        case ["keys"] | ["keys", _]:
            return _print_key_files(_asked(arguments))
    print("usage: python -m glmtts.daemon.config check [FILE] | keys [FILE] | default", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
