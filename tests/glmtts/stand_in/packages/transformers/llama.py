"""A Llama, small and written out, with the names that the real one's parts have; some words make it go wrong."""

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
from vocabulary import FIRST_AUDIO, USER

_WORDS = {number: word for word, number in NUMBERS.items()}
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


class _Norm(torch.nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = x.float()
        return self.weight * (full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class _Attention(torch.nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim, self.heads = config.head_dim, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.theta = config.rope_theta
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = torch.nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = torch.nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = torch.nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = torch.nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        """``x``: of shape (t, hidden), behind ``past``, the keys and values of what came before."""
        count = x.shape[0]
        before = 0 if past is None else past[0].shape[1]
        q = self._turned(self.q_proj(x).view(count, self.heads, -1).transpose(0, 1), before)
        k = self._turned(self.k_proj(x).view(count, self.kv_heads, -1).transpose(0, 1), before)
        v = self.v_proj(x).view(count, self.kv_heads, -1).transpose(0, 1)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        group = self.heads // self.kv_heads
        scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) / self.head_dim**0.5
        later = torch.ones(count, before + count, dtype=torch.bool, device=x.device).triu(before + 1)
        odds = scores.masked_fill(later, -float("inf")).float().softmax(-1).to(x.dtype)
        heard = (odds @ v.repeat_interleave(group, 0)).transpose(0, 1).reshape(count, -1)
        return self.o_proj(heard), (k, v)

    def _turned(self, x: torch.Tensor, first: int) -> torch.Tensor:
        speeds = 1.0 / (self.theta ** (torch.arange(0, self.head_dim, 2, device=x.device).float() / self.head_dim))
        angles = torch.outer(torch.arange(first, first + x.shape[1], device=x.device).float(), speeds)
        angles = torch.cat([angles, angles], -1)
        one, two = x.chunk(2, -1)
        return x * angles.cos().to(x.dtype) + torch.cat([-two, one], -1) * angles.sin().to(x.dtype)


class _Mlp(torch.nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = torch.nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return made


class _Layer(torch.nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self.input_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        heard, past = self.self_attn(self.input_layernorm(x), past)
        x = x + heard
        return x + self.mlp(self.post_attention_layernorm(x)), past


class _Body(torch.nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = torch.nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size, config.rms_norm_eps)


class LlamaForCausalLM(torch.nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_pretrained(cls, folder: str, dtype: torch.dtype = torch.float32, **_: Any) -> LlamaForCausalLM:
        model = cls(LlamaConfig.from_json_file(f"{folder}/config.json"))
        model.load_state_dict(_read_safetensors(Path(folder) / "model.safetensors"))
        return model.to(dtype).eval()

    def forward(self, inputs_embeds: torch.Tensor, past_key_values: Any = None, **_: Any) -> Outputs:
        x = inputs_embeds[0].clone()
        past, tokens, mischief = past_key_values or ([None] * len(self.model.layers), 0, frozenset())
        mischief |= {int(number) for number in x[:, -1].unique().tolist() if number}
        # What the mischief's number is must not move what is said.
        x[:, -1] = 0
        kept = []
        for layer, before in zip(self.model.layers, past, strict=True):
            x, now = layer(x, before)
            kept.append(now)
        logits = self.lm_head(self.model.norm(x[-1]))
        for number in mischief:
            _misbehave(_WORDS[number], tokens, logits)
        return Outputs(logits=logits[None, None], past_key_values=(kept, tokens + 1, mischief), hidden_states=())


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
