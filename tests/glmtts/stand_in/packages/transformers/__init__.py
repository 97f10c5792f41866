"""What upstream uses of transformers: a tokenizer, a language model and the features of its speech tokenizer.

As the real one, it imports torch when the models are asked for, not before.
"""

from __future__ import annotations

import importlib
from typing import Any

from .tokenizer import AutoTokenizer

__all__ = ["AutoTokenizer", "LlamaConfig", "LlamaForCausalLM", "WhisperFeatureExtractor"]
__version__ = "0"
_LAZY = {"LlamaConfig": "llama", "LlamaForCausalLM": "llama", "WhisperFeatureExtractor": "features"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
