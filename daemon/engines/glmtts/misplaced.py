"""How checkouts and checkpoints come to lie in the wrong place or half downloaded, and what to say then."""

from __future__ import annotations

import os
from pathlib import Path

#: By this file a checkout is known.
ENTRY = "glmtts_inference.py"


def wrong_place(root: str) -> str:
    """Why there can't be a checkout at ``root``, or ``""``."""
    if not root:
        return (
            "[engine.glmtts] root is not set: it names the folder of the GLM-TTS checkout with its ckpt/ folder; "
            "docs/glmtts.md says how to install it"
        )
    path = Path(root)
    if not path.is_absolute():
        return f"[engine.glmtts] root = {root!r} is relative, and a daemon has no folder to start from"
    try:
        names = os.listdir(path)  # noqa: PTH208 - the names alone, and the errors of the path itself
    except FileNotFoundError:
        return f"{path} is not there: set [engine.glmtts] root to the folder of the GLM-TTS checkout"
    except NotADirectoryError:
        return f"{path} is no folder: set [engine.glmtts] root to the folder of the GLM-TTS checkout"
    except (OSError, ValueError) as error:
        return (
            f"{path} can't be read by user {os.geteuid()} ({getattr(error, 'strerror', error)}): "
            "chmod a+rx it and the folders above it"
        )
    if ENTRY in names:
        return ""
    if {"llm", "flow"} <= set(names) and "cosyvoice" not in names:
        return (
            f"{path} is the checkpoint alone: clone https://github.com/zai-org/GLM-TTS, put this folder into it as "
            "ckpt, and set [engine.glmtts] root to the clone"
        )
    hint = next((found.parent for found in sorted(path.glob(f"*/{ENTRY}"))), None)
    return f"{path} is no GLM-TTS checkout, having no {ENTRY}: " + (
        f"is {hint} meant?" if hint else "set [engine.glmtts] root to a clone of https://github.com/zai-org/GLM-TTS"
    )


def one_level_deeper(ckpt: Path) -> Path | None:
    """The folder below ``ckpt`` that the checkpoint is in, where it was put one level too deep."""
    return next((found.parent.parent for found in sorted(ckpt.glob("*/llm/config.json"))), None)


def unfinished(ckpt: Path) -> list[str]:
    """What huggingface_hub, modelscope, aria2 and browsers leave of a download that was broken off."""
    patterns = (
        ".cache/huggingface/download/*.incomplete",
        ".cache/huggingface/download/*/*.incomplete",
        "._____temp/*.*",
        "._____temp/*/*",
        *(f"{below}*.{ending}" for below in ("", "*/") for ending in ("incomplete", "aria2", "part", "crdownload")),
    )
    return sorted({str(path.relative_to(ckpt)) for pattern in patterns for path in ckpt.glob(pattern)})
