"""Imports and loads upstream's GLM-TTS from its checkout, without changing a file of it.

Upstream expects a working directory, a folder on ``sys.path`` and CUDA, prints and configures logging, and writes a
compiled grammar into site-packages; all of that is handled here and nowhere else. Written against zai-org/GLM-TTS at
c5dc7ae.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import io
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .cpu_fallback import cpu_fallback
from .grammar_cache import SharedGrammar

#: The rate that upstream loads first, in Hz; the vocoder of the other rate is added.
FIRST_RATE = 24_000
_PRINTED_LINES_KEPT = 40


class UpstreamError(Exception):
    """Upstream can't be loaded; the message has the reason and the remedy."""


class Upstream:
    """Owns upstream's loaded objects, under upstream's names, with one ``Token2Wav`` and mel for each rate.

    ``took``: the seconds of each part of the loading.
    """

    def __init__(self, root: Path, *, rates: tuple[int, ...], half_llm: bool, cache_dir: Path) -> None:
        self.root = root
        self.took: dict[str, float] = {}
        self._prints = Prints()
        prepare_process(root, cache_dir)
        with self._loading(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self._timed("imports"):
                self.inference: Any = _import("glmtts_inference")
                self._mel: Any = importlib.import_module("utils.audio")
            self._load_no_texts(SharedGrammar(cache_dir))
            self._load_once(half_llm)
            with self._timed("weights"), cpu_fallback():
                models = self.inference.load_models(use_phoneme=True, sample_rate=FIRST_RATE)
            self.frontend, _, _, self.llm, first = models
            self.device = self.inference.DEVICE
            self.flow = first.flow
            self.vocoders = {FIRST_RATE: first}
            with self._timed("other rates"), cpu_fallback():
                for rate in rates:
                    if rate not in self.vocoders:
                        self.vocoders[rate] = self.inference.tts_model_util.Token2Wav(
                            self.flow, sample_rate=rate, device=self.device
                        )
            self._mels = {rate: _mel_at(rate, self.frontend.feat_extractor) for rate in self.vocoders}
            if half_llm:
                # Half precision is too coarse for the probabilities of 98,304 tokens.
                self.llm.llama.register_forward_hook(_in_full)
            self._mel_caches: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {rate: ({}, {}) for rate in self._mels}

    def text_tokens(self, text: str) -> Any:
        """The tokens of ``text``, of shape (1, t)."""
        return self.frontend._extract_text_token(text)

    def speech_tokens(self, samples: Any) -> list[int]:
        """The speech tokens, 25 a second, of samples of shape (1, n) at 16,000 Hz."""
        with self.quiet(), cpu_fallback():
            tokens: list[int] = self.frontend._extract_speech_token([(samples, 16_000)])[0].tolist()
        return tokens

    def speaker(self, samples: Any) -> Any:
        """The speaker embedding, of shape (1, 192), of samples of shape (1, n) at 16,000 Hz."""
        with self.quiet(), cpu_fallback():
            return self.frontend._extract_spk_embedding(samples.to(self.device))

    def mel(self, samples: Any, rate: int) -> Any:
        """The mel spectrogram, of shape (1, t, 80) with t 50 a second, of samples of shape (1, n) at ``rate``."""
        # Upstream caches its filters by device and highest frequency, which are equal at the two rates.
        self._mel.mel_basis, self._mel.hann_window = self._mel_caches[rate]
        self.frontend.feat_extractor = self._mels[rate]
        with self.quiet():
            return self.frontend._extract_speech_feat(samples, sample_rate=rate)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Discard what upstream prints, which quotes texts."""
        with contextlib.redirect_stdout(self._prints):
            yield

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """Show what upstream prints only if the loading fails, and what it logs from warnings on."""
        logging.disable(logging.INFO)
        try:
            with self.quiet():
                yield
        except UpstreamError:
            raise
        except Exception:
            traceback.print_exc()
            self._prints.show()
            raise
        finally:
            logging.disable(logging.NOTSET)
            self._prints.lines.clear()

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.took[part] = self.took.get(part, 0.0) + time.monotonic() - begun

    def _load_no_texts(self, grammar: SharedGrammar) -> None:
        """Leave the normaliser to the text processes, and let one process at a time write files."""
        self.inference.TextFrontEnd = _no_front_end
        load_frontends = self.inference.load_frontends

        @functools.wraps(load_frontends)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with grammar.lock():
                return load_frontends(*args, **kwargs)

        self.inference.load_frontends = locked

    def _load_once(self, half_llm: bool) -> None:
        """Load the language model once, in its final type; upstream first makes one with random weights."""
        import torch

        llm_module: Any = importlib.import_module("llm.glmtts")
        made_at_random = llm_module.LlamaForCausalLM

        def empty(config: Any) -> Any:
            with torch.device("meta"):
                return made_at_random(config)

        llm_module.LlamaForCausalLM = empty
        if half_llm:
            published: Any = self.inference.LlamaForCausalLM

            class InHalf:
                @staticmethod
                def from_pretrained(*args: Any, **kwargs: Any) -> Any:
                    return published.from_pretrained(*args, **(kwargs | {"dtype": torch.bfloat16}))

            self.inference.LlamaForCausalLM = InHalf


def prepare_process(root: Path, cache_dir: Path) -> None:
    """Set the working directory and ``sys.path`` that upstream needs, and writable caches."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    # No downloads, and no files in a home directory, which a service may not have.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_MODULES_CACHE", str(cache_dir / "huggingface"))
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir / "numba"))
    # Configure logging before upstream does at its import.
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UpstreamError(
            f"GLM-TTS imports {error.name}, which {sys.executable} does not have; glmttsctl doctor names all "
            "missing packages and the command that installs them; docs/glmtts.md has versions that work together"
        ) from error
    except (ImportError, OSError) as error:
        raise UpstreamError(
            f"GLM-TTS can't be imported by {sys.executable}: {error}. A package of its environment is broken, or its "
            "version does not fit the others; docs/glmtts.md has versions that work together"
        ) from error


def _no_front_end(_: bool) -> None:
    """Takes the place of upstream's TextFrontEnd."""


def _mel_at(rate: int, extractor: Any) -> Callable[..., Any]:
    """Upstream's mel spectrogram (a functools.partial), with all its lengths scaled to ``rate``."""
    keywords = dict(extractor.keywords)
    own = keywords["sampling_rate"]
    for length in ("sampling_rate", "hop_size", "n_fft", "win_size"):
        keywords[length] = keywords[length] * rate // own
    return functools.partial(extractor.func, *extractor.args, **keywords)


def _in_full(_: Any, __: Any, outputs: Any) -> Any:
    outputs["logits"] = outputs["logits"].float()
    return outputs


class Prints(io.TextIOBase):
    """Keeps the last lines that upstream prints, which quote texts once it is loaded."""

    def __init__(self) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=_PRINTED_LINES_KEPT)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.lines.extend(line for line in text.splitlines() if line.strip())
        return len(text)

    def show(self) -> None:
        """Print the lines on stderr, because upstream can't be loaded."""
        for line in self.lines:
            print(f"GLM-TTS printed: {line}", file=sys.stderr)
