"""A language model of one layer: what it has heard so far fades, and every token that it draws depends on it."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import time
from pathlib import Path
from typing import Any

import torch
from mischief import LATE_TOKEN, LEAK_MIB, NUMBERS, SLOW_TOKEN, SLUGGISH_S
from vocabulary import FIRST_AUDIO, SIZE, USER

_WORDS = {number: word for word, number in NUMBERS.items()}
_SLOWLY_FADING = 0.99
_FADING = 0.5
_leaked: list[bytes] = []


class LlamaConfig:
    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)

    @classmethod
    def from_json_file(cls, path: str) -> LlamaConfig:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


class Outputs(dict[str, Any]):
    """As a ``ModelOutput``: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class _Body(torch.nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(SIZE, hidden)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2 * hidden, hidden)])
        self.norm = torch.nn.Linear(1, hidden, bias=False)


class LlamaForCausalLM(torch.nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config.hidden_size)
        self.lm_head = torch.nn.Linear(config.hidden_size, SIZE)

    @classmethod
    def from_pretrained(cls, folder: str, dtype: torch.dtype = torch.float32, **_: Any) -> LlamaForCausalLM:
        model = cls(LlamaConfig.from_json_file(f"{folder}/config.json"))
        model.load_state_dict(_read_safetensors(Path(folder) / "model.safetensors"))
        return model.to(dtype).eval()

    def forward(self, inputs_embeds: torch.Tensor, past_key_values: Any = None, **_: Any) -> Outputs:
        heard = inputs_embeds[0]
        count, hidden = heard.shape
        mood, tokens, mischief = past_key_values or (heard.new_zeros(2 * hidden), 0, frozenset())
        mischief |= {int(number) for number in heard[:, -1].unique().tolist() if number}
        age = torch.arange(count - 1, -1, -1, device=heard.device, dtype=heard.dtype)[:, None]
        slow = mood[:hidden] * _SLOWLY_FADING**count + 0.2 * (heard * _SLOWLY_FADING**age).sum(0)
        fast = mood[hidden:] * _FADING**count + (heard * _FADING**age).sum(0)
        mood = torch.cat([slow, fast])
        logits = self.lm_head(torch.tanh(self.model.layers[0](mood)) * self.model.norm.weight[:, 0])
        logits[USER] = logits.max() - 0.5
        for number in mischief:
            _misbehave(_WORDS[number], tokens, logits)
        return Outputs(logits=logits[None, None], past_key_values=(mood, tokens + 1, mischief), hidden_states=())


def _misbehave(word: str, tokens: int, logits: torch.Tensor) -> None:
    """What mischief.py says of the word."""
    late = tokens == LATE_TOKEN
    match word:
        case "overrange":
            logits[-8:] = logits.max() + 5
        case "underrange":
            logits[:8] = logits.max() + 5
        case "neverending":
            logits[USER] = -1e4
        case "onlyending":
            logits[:] = -float("inf")
            logits[USER] = 0
        case "sluggish":
            time.sleep(SLUGGISH_S)
        case "slowflow":
            logits[FIRST_AUDIO + SLOW_TOKEN] = logits.max() + 5
        case "notanumber":
            logits[:] = float("nan")
        case "outofmemory" if late:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        case "devicefault" if late:
            raise RuntimeError("CUDA error: device-side assert triggered")
        case "raises" if late:
            raise RuntimeError("the fault that was asked for")
        case "segfault" if late:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)
        case "hangforever" if late:
            while True:
                time.sleep(3_600)
        case "chatty":
            print(f"token {tokens} of a text that nobody else should read")
            os.write(1, b"\x00\xff\x81\xa4type\xa8nonsense\n")
        case "leaky" if late:
            _leaked.append(b"\x5a" * (LEAK_MIB << 20))


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors
