"""Checks a GLM-TTS checkout and its checkpoint before anything is loaded, in milliseconds.

Upstream opens its files one by one over a minute, and stops at the first that is missing or cut off, with the error of
the library that read it. This module reports everything that is wrong at once. The lists of files follow upstream's
commit c5dc7ae.

The doctor uses it too, so it imports nothing but the standard library and msgspec.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

from msgspec import Struct

from .checkpoint_files import (
    DamagedError,
    check_custom_replacements,
    check_onnx,
    check_phoneme_replacements,
    digest,
    is_missing,
    look_inside,
    read_flow_modules,
    read_json,
    read_safetensors,
    read_torch_zip,
    read_vocabulary_names,
    unfinished_downloads,
)

T = TypeVar("T")

#: The file that identifies a checkout.
_ENTRY = "glmtts_inference.py"

#: The modules of the checkout that glmtts_inference.py imports, and the flow model of the published configuration.
_SOURCES = (
    _ENTRY,
    "cosyvoice/cli/frontend.py",
    "cosyvoice/hifigan_cosy2/f0_predictor.py",
    "cosyvoice/hifigan_cosy2/generator.py",
    "cosyvoice/transformer/activation.py",
    "cosyvoice/utils/common.py",
    "cosyvoice/utils/frontend_utils.py",
    "cosyvoice/utils/mask.py",
    "flow/dit.py",
    "flow/flow.py",
    "flow/modules.py",
    "llm/glmtts.py",
    "utils/audio.py",
    "utils/block_mask_util.py",
    "utils/file_utils.py",
    "utils/glm_g2p.py",
    "utils/hift_util.py",
    "utils/seed_util.py",
    "utils/tts_model_util.py",
    "utils/vocos_util.py",
    "utils/whisper_models/configuration_whisper.py",
    "utils/whisper_models/modeling_whisper.py",
    "utils/yaml_util.py",
)

#: The one model that is part of the git repository.
_SPEAKER = "frontend/campplus.onnx"

_DEFAULT_RATE, _VOCOS_RATE = 24_000, 32_000

#: Most names in one line, and most characters in an error: the last line of a worker is cut at 4,096 bytes.
_MOST_NAMES, _MOST_WORDS = 12, 3_000

#: A layer of the language model, in a tensor's name.
_LAYER = re.compile(r"model\.layers\.\d+\.")

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")

#: A JSON object whose values are the names of the model's phonemes.
PHONEMES = "configs/G2P_all_phonemes.json"

#: Configuration that upstream and the engine read. Without custom_replace.jsonl upstream silently pronounces some words
#: differently.
_CONFIGS: dict[str, Callable[[Path], object]] = {
    "configs/G2P_able_1word.json": look_inside,
    PHONEMES: read_json,
    "configs/G2P_replace_dict.jsonl": check_phoneme_replacements,
    "configs/custom_replace.jsonl": check_custom_replacements,
    "configs/spk_prompt_dict.yaml": look_inside,
}


class CheckpointError(Exception):
    """The checkpoint can't be loaded. ``problems``: a line each; the message has all of them in one line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(_in_one_line(problems))
        self.problems = problems


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A complete checkout with its checkpoint.

    ``version``: the commit and a fingerprint of all files that affect the audio: equal versions make equal audio.
    ``sample_rates``: in Hz, the default first. ``parameters``: the number of weights in each part of the model.
    ``remarks``: notes on optional parts that are missing.
    """

    root: Path
    version: str
    sample_rates: tuple[int, ...]
    parameters: dict[str, int]
    remarks: tuple[str, ...] = ()

    def weights_bytes(self, dtype: Literal["fp32", "bf16"]) -> int:
        """Bytes of GPU memory for the weights, with the language model in ``dtype`` and the rest in fp32.

        Computed, not measured; without the CUDA context, libraries and activations.
        """
        of_llm = 2 if dtype == "bf16" else 4
        return sum(count * (of_llm if part == "llm" else 4) for part, count in self.parameters.items())


def look(root: Path | str) -> Checkpoint:
    """Check the checkout at ``root``. Raises CheckpointError with everything that is wrong."""
    if problem := _wrong_place(str(root)):
        raise CheckpointError([problem])
    return _Look(Path(root)).result()


class _Look:
    """One pass over a checkout; collects what is missing, damaged and present."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ckpt = root / "ckpt"
        #: Dictionaries as ordered sets: a file that is read twice is reported once.
        self._damaged: dict[str, None] = {}
        self._missing: dict[str, None] = {}
        #: Relative paths of the files that affect the audio.
        self._seen: set[str] = set()
        self._looked_at: set[str] = set()
        self._parameters: dict[str, int] = {}
        self._remarks: list[str] = []

    def result(self) -> Checkpoint:
        for source in _SOURCES:
            self._examine(source, look_inside)
        for config, read in _CONFIGS.items():
            self._examine(config, read)
        self._examine(_SPEAKER, check_onnx)
        if not is_missing(self._ckpt):
            self._llm()
            self._flow()
            self._vocoders()
            self._speech_tokenizer()
            self._text_tokenizer()
        if problems := [*self._not_whole(), *self._damaged]:
            raise CheckpointError(problems)
        has_vocos = "vocos2d" in self._parameters
        return Checkpoint(
            root=self._root,
            version=self._version(),
            sample_rates=(_DEFAULT_RATE, _VOCOS_RATE) if has_vocos else (_DEFAULT_RATE,),
            parameters=self._parameters,
            remarks=tuple(self._remarks),
        )

    # --- the parts

    def _llm(self) -> None:
        config = self._examine("ckpt/llm/config.json", read_json)
        tensors = self._safetensors("ckpt/llm")
        if config is None or not tensors:
            return
        if config.get("tie_word_embeddings"):
            tensors.pop("lm_head.weight", None)  # the embedding once more
        if not any(name.startswith("model.") for name in tensors):
            tensors = {f"model.{name}": count for name, count in tensors.items()}  # as transformers takes them too
        layers = config.get("num_hidden_layers")
        there = {match[0] for name in tensors if (match := _LAYER.match(name))}
        expected = [f"model.layers.{number}." for number in range(layers if isinstance(layers, int) else 0)]
        lacking = [layer for layer in expected if layer not in there]
        lacking += [name for name in ("model.embed_tokens.weight", "model.norm.weight") if name not in tensors]
        if lacking:
            # Transformers would fill them with random numbers and only warn.
            words = (
                f"{self._ckpt / 'llm'}: config.json lists {layers} layers, but the weights have no "
                f"{_listed(lacking)}; they belong to different models: download both again"
            )
            self._damaged[words] = None
        self._parameters["llm"] = sum(tensors.values())

    def _flow(self) -> None:
        for module in self._examine("ckpt/flow/config.yaml", read_flow_modules) or ():
            name = f"{module.replace('.', '/')}.py"
            if not is_missing(self._root / name):
                self._examine(name, look_inside)
        self._torch_zip("flow", "ckpt/flow/flow.pt")

    def _vocoders(self) -> None:
        self._torch_zip("hift", "ckpt/hift/hift.pt")
        file = "ckpt/vocos2d/generator_jit.ckpt"
        if not is_missing(self._root / file):
            self._torch_zip("vocos2d", file)
        else:
            self._remarks.append(
                f"{self._root / file} is missing: the engine synthesizes at {_DEFAULT_RATE} Hz only, not at "
                f"{_VOCOS_RATE} Hz; other rates are resampled"
            )

    def _speech_tokenizer(self) -> None:
        folder = "ckpt/speech_tokenizer"
        config = self._examine(f"{folder}/config.json", read_json) or {}
        self._examine(f"{folder}/preprocessor_config.json", read_json)
        last = config.get("quantize_position")
        # Upstream loads the encoder up to the layer that it quantises after (utils/yaml_util.py).
        self._parameters["speech_tokenizer"] = sum(
            count
            for name, count in self._safetensors(folder, indexed=False).items()
            if (match := re.match(r"model\.encoder\.(?!layer_norm)(?:layers\.(\d+)\.)?", name))
            and (match[1] is None or not isinstance(last, int) or int(match[1]) < last)
        )

    def _text_tokenizer(self) -> None:
        folder = "ckpt/vq32k-phoneme-tokenizer"
        config = self._examine(f"{folder}/tokenizer_config.json", read_json)
        code = config.get("auto_map") if config else None
        named = code.get("AutoTokenizer") if isinstance(code, dict) else None
        for name in named if isinstance(named, list) else [named]:
            # As in "module.Class"; "repository--module.Class" is not in the folder.
            if isinstance(name, str) and "--" not in name:
                self._examine(f"{folder}/{name.rpartition('.')[0]}.py", look_inside)
        for path in sorted((self._root / folder).glob("*.py")):
            for needed in self._examine(f"{folder}/{path.name}", read_vocabulary_names) or ():
                self._examine(f"{folder}/{needed}", look_inside)
        # The tokenizer's code may read any other file there, so all of them belong to the version.
        for path in (self._root / folder).glob("[!.]*.*"):
            if f"{folder}/{path.name}" not in self._looked_at:
                self._examine(f"{folder}/{path.name}", look_inside)

    # --- files

    def _examine(self, name: str, read: Callable[[Path], T]) -> T | None:
        """``read(file)``; None, and a note of why, for a file that is missing or damaged."""
        path = self._root / name
        self._looked_at.add(name)
        try:
            value = read(path)
        except FileNotFoundError:
            self._missing[name] = None
        except DamagedError as error:
            self._damaged[f"{path} {error}"] = None
        except OSError as error:
            self._damaged[f"{path} can't be read: {error.strerror}"] = None
        else:
            self._seen.add(name)
            return value
        return None

    def _torch_zip(self, part: str, name: str) -> None:
        # They are published, and loaded, in fp32.
        if (size := self._examine(name, read_torch_zip)) is not None:
            self._parameters[part] = size // 4

    def _safetensors(self, folder: str, *, indexed: bool = True) -> dict[str, int]:
        """Elements of each tensor of a model, from one file or several; {} when one of them can't be read.

        Transformers finds several files by an index; upstream's own code (``indexed=False``) loads all in the folder.
        """
        names = {f"{folder}/model.safetensors"}
        if is_missing(self._root / folder / "model.safetensors"):
            index = f"{folder}/model.safetensors.index.json"
            parts = [path.name for path in (self._root / folder).glob("model-*-of-*.safetensors")]
            if parts and not indexed:
                count = parts[0].rpartition("-")[2].removesuffix(".safetensors")
                numbers = range(1, int(count) + 1) if count.isdigit() else ()
                names = {f"{folder}/{part}" for part in parts}
                names |= {f"{folder}/model-{number:0{len(count)}}-of-{count}.safetensors" for number in numbers}
            elif parts or not is_missing(self._root / index):
                names = self._named_in(index)
        found = {name: self._examine(name, read_safetensors) for name in sorted(names)}
        if not all(found.values()):
            return {}
        return {tensor: count for tensors in found.values() for tensor, count in (tensors or {}).items()}

    def _named_in(self, index: str) -> set[str]:
        value = self._examine(index, read_json)
        if value is None:
            return set()
        files = value.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) and "/" not in file for file in files.values()):
            self._damaged[f"{self._root / index} names no files of weights; download it again"] = None
            return set()
        return {f"{index.rpartition('/')[0]}/{file}" for file in files.values()}

    # --- messages

    def _not_whole(self) -> Iterable[str]:
        """Problems about missing files, with their likely cause."""
        git = f"git -C {self._root}"
        restore = f"{git} ls-files -d | xargs {git} checkout -- restores them"
        code = [name for name in self._missing if not name.startswith("ckpt/")]
        if code:
            words = f"{self._root} is not the whole of GLM-TTS's code: {_listed(code)} missing; "
            yield words + (f"{restore}, or clone it again" if not is_missing(self._root / ".git") else "clone it again")
        download = f"hf download zai-org/GLM-TTS --local-dir {self._ckpt}"
        if is_missing(self._ckpt):
            yield f"{self._ckpt}, the folder of the weights, is missing: {download} (docs/glmtts.md)"
            return
        weights = [name.removeprefix("ckpt/") for name in self._missing if name.startswith("ckpt/")]
        if weights and (inner := _one_level_deeper(self._ckpt)):
            yield f"{self._ckpt} has the checkpoint one level too deep, in {inner.name}: mv {inner}/* {self._ckpt}/"
        elif weights:
            yield f"{self._ckpt} is not complete: {_listed(weights)} missing; {download}"
        if (weights or self._damaged) and (unfinished := unfinished_downloads(self._ckpt)):
            yield f"{self._ckpt} has an unfinished download ({_listed(unfinished, 2)}): start it again"

    def _version(self) -> str:
        sources = self._hash(name for name in self._seen if name.endswith(".py") and not name.startswith("ckpt/"))
        commit = _commit(self._root)
        return f"{commit[:7] if commit else f'src.{sources[:7]}'}-{self._hash(self._seen)[:10]}"

    def _hash(self, names: Iterable[str]) -> str:
        found = hashlib.sha256()
        for name in sorted(names):
            found.update(name.encode() + b"\0" + digest(self._root / name))
        return found.hexdigest()


def _listed(names: list[str], most: int = _MOST_NAMES) -> str:
    """``a, b and 3 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _in_one_line(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    words = f"{len(problems)} problems"
    for number, problem in enumerate(problems, 1):
        if len(words) + len(problem) > _MOST_WORDS:
            return f"{words}; and {len(problems) - number + 1} more, which glmttsctl doctor names"
        words += f"{'; ' if number > 1 else ': '}({number}) {problem}"
    return words


def _wrong_place(root: str) -> str:
    """Why ``root`` can't be a checkout, or ``""``."""
    if not root:
        return (
            "[engine.glmtts] root is not set: it names the folder of the GLM-TTS checkout with its ckpt/ folder; "
            "docs/glmtts.md describes the installation"
        )
    path = Path(root)
    if not path.is_absolute():
        return f"[engine.glmtts] root = {root!r} must be an absolute path"
    fix = "set [engine.glmtts] root to the folder of the GLM-TTS checkout"
    try:
        names = os.listdir(path)  # noqa: PTH208 - the names alone, and the errors of the path itself
    except FileNotFoundError:
        return f"{path} does not exist: {fix}"
    except NotADirectoryError:
        return f"{path} is not a folder: {fix}"
    except (OSError, ValueError) as error:
        return (
            f"{path} can't be read by user {os.geteuid()} ({getattr(error, 'strerror', error)}): "
            "chmod a+rx it and the folders above it"
        )
    if _ENTRY in names:
        return ""
    if {"llm", "flow"} <= set(names) and "cosyvoice" not in names:
        return (
            f"{path} is the checkpoint alone: clone https://github.com/zai-org/GLM-TTS, put this folder into it as "
            "ckpt, and set [engine.glmtts] root to the clone"
        )
    hint = next((found.parent for found in sorted(path.glob(f"*/{_ENTRY}"))), None)
    return f"{path} is not a GLM-TTS checkout, it has no {_ENTRY}: " + (
        f"is {hint} meant?" if hint else "set [engine.glmtts] root to a clone of https://github.com/zai-org/GLM-TTS"
    )


def _one_level_deeper(ckpt: Path) -> Path | None:
    """The folder below ``ckpt`` that holds the checkpoint, if it was put there by mistake."""
    return next((found.parent.parent for found in sorted(ckpt.glob("*/llm/config.json"))), None)


def _commit(root: Path) -> str | None:
    """The full commit checked out in ``root``; None without one, without a ``.git``, or without git on this machine."""
    # Naming the folder keeps git from searching the parents, and from refusing one that another user owns.
    command = ["git", "--git-dir", str(root / ".git"), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    commit = done.stdout.strip()
    return commit if done.returncode == 0 and _COMMIT.fullmatch(commit) else None
