"""What upstream uses of transformers: a tokenizer, a language model and the features of its speech tokenizer."""

from __future__ import annotations

from .features import WhisperFeatureExtractor
from .llama import LlamaConfig, LlamaForCausalLM
from .tokenizer import AutoTokenizer

__all__ = ["AutoTokenizer", "LlamaConfig", "LlamaForCausalLM", "WhisperFeatureExtractor"]
__version__ = "0"
