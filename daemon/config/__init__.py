"""The configuration file: found, read, checked, and resolved on this machine."""

from .load import (
    SYSTEM_FILE,
    Config,
    ConfigError,
    cache_dir,
    engine_python,
    find,
    outputs_dir,
    own_voices_dir,
    packaged_default,
    parse,
    read,
    results_dir,
    state_dir,
    voices_dir,
)
from .names import names_in, unknown_names

__all__ = [
    "SYSTEM_FILE",
    "Config",
    "ConfigError",
    "cache_dir",
    "engine_python",
    "find",
    "names_in",
    "outputs_dir",
    "own_voices_dir",
    "packaged_default",
    "parse",
    "read",
    "results_dir",
    "state_dir",
    "unknown_names",
    "voices_dir",
]
