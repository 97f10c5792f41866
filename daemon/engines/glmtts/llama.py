"""Upstream's language model, a Llama, over a static cache: one step for many rows at once, or one row's prompt.

The weights are upstream's own, by name; the maths is that of transformers' LlamaForCausalLM. For a number of rows, all
shapes of a step are fixed, and no value goes to the host, so that a step can be captured as a CUDA graph.

Imports torch, so the engine imports this module after it has chosen its device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .device import head_size
from .upstream import UpstreamError

#: Places that attention takes at a time on a CPU, and the score of a masked one.
BLOCK = 256
_LOWEST = -1e30
#: Values of the model's configuration that the maths below relies on; None: not set.
_TAKEN_FOR_GRANTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


class Llama:
    """``rows`` texts of up to ``places`` tokens each. ``llama``: upstream's ``LlamaForCausalLM``, on its device.

    ``parked``: the number of rows behind them that only keep their content; a step does not compute them.

    Raises UpstreamError for a model whose parts are not those of a Llama.
    """

    def __init__(self, llama: Any, *, rows: int, parked: int, places: int) -> None:
        _check(llama)
        config = llama.config
        self.rows = rows
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = head_size(config)
        self._eps = config.rms_norm_eps
        self._embedding: Tensor = llama.model.embed_tokens.weight.detach()
        self._norm: Tensor = llama.model.norm.weight.detach()
        self._head: Tensor = llama.lm_head.weight.detach()
        self._layers = [_Layer(layer) for layer in llama.model.layers]
        self.device, self.dtype = self._embedding.device, self._embedding.dtype
        slow = torch.arange(0, self._size, 2).float() / self._size
        angles = torch.outer(torch.arange(places).float(), 1.0 / (_theta(config) ** slow))
        angles = torch.cat([angles, angles], -1)
        self._cos = angles.cos().to(self.device, self.dtype)
        self._sin = angles.sin().to(self.device, self.dtype)
        self._every_row = torch.arange(rows, device=self.device)
        self._every_place = torch.arange(places, device=self.device)
        shape = (len(self._layers), rows + parked, self._kv_heads, places, self._size)
        #: Never NaN: a masked place counts as zero times its value.
        self.keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)

    def read(self, row: int, ids: list[int], begin: int) -> Tensor:
        """Take in a part of a row's prompt, the tokens from place ``begin`` on; all before it is in the cache.

        Returns the logits after its last token, of shape (1, vocabulary), fp32.
        """
        count = len(ids)
        end = begin + count
        group = self._heads // self._kv_heads
        x = self._embedding[torch.tensor(ids, device=self.device)]
        cos, sin = self._cos[begin:end], self._sin[begin:end]
        earlier = self._every_place[:end] <= self._every_place[begin:end, None]
        # The query heads that share a head of keys stand one below the other.
        mask = earlier.repeat(group, 1)
        for number, layer in enumerate(self._layers):
            q, k, v = self._projected(layer, x, count)
            q, k = _turned(q.transpose(0, 1), cos, sin), _turned(k.transpose(0, 1), cos, sin)
            keys, values = self.keys[number, row], self.values[number, row]
            keys[:, begin:end], values[:, begin:end] = k, v.transpose(0, 1)
            heard = functional.scaled_dot_product_attention(
                q.reshape(1, self._kv_heads, group * count, self._size),
                keys[None, :, :end],
                values[None, :, :end],
                attn_mask=mask,
            )
            heard = heard.view(self._heads, count, self._size).transpose(0, 1).reshape(count, -1)
            x = self._after_attention(layer, x, heard)
        return self._logits(x[-1:])

    def step(self, last: Tensor, at: Tensor, reach: int, first: int = 0) -> Tensor:
        """One token for each row from ``first`` on: ``last`` stands at the places ``at``, both of shape (n,).

        No live row is at ``reach`` or beyond. Doing a step again changes nothing. Returns logits of shape
        (n, vocabulary), fp32.
        """
        rows = len(last)
        computed = slice(first, first + rows)
        x = self._embedding[last]
        cos, sin = self._cos[at][:, None], self._sin[at][:, None]
        mask = (self._every_place[:reach] <= at[:, None])[:, None, None]
        attend = _attention_in_blocks if self.device.type == "cpu" else functional.scaled_dot_product_attention
        for number, layer in enumerate(self._layers):
            q, k, v = self._projected(layer, x, rows)
            q, k = _turned(q, cos, sin), _turned(k, cos, sin)
            self.keys[number][self._every_row[computed], :, at] = k
            self.values[number][self._every_row[computed], :, at] = v
            heard = attend(
                q.reshape(rows, self._kv_heads, -1, self._size),
                self.keys[number, computed, :, :reach],
                self.values[number, computed, :, :reach],
                attn_mask=mask,
            )
            x = self._after_attention(layer, x, heard.reshape(rows, -1))
        return self._logits(x)

    @torch.inference_mode()
    def equal_counts(self) -> list[int]:
        """The numbers of first rows that a step may compute, ascending: each gives a row the bits of a step of all.

        Libraries of matrix products round by the number of rows, so each number is tried. The cache has to be empty.
        """
        draw = torch.Generator().manual_seed(0)
        last = torch.randint(len(self._embedding), (self.rows,), generator=draw)
        at = torch.randint(BLOCK // 2, BLOCK, (self.rows,), generator=draw)
        for cache in (self.keys, self.values):
            cache[:, : self.rows, :, :BLOCK].normal_(generator=draw)
        whole = self.step(last, at, BLOCK)
        fewer = [1 << bits for bits in range((self.rows - 1).bit_length())]
        equal = [count for count in fewer if torch.equal(self.step(last[:count], at[:count], BLOCK), whole[:count])]
        for row in range(self.rows):
            self.wipe(row)
        return [*equal, self.rows]

    def move(self, source: int, target: int, count: int) -> None:
        """Copy the first ``count`` places of a row to another row."""
        for cache in (self.keys, self.values):
            cache[:, target, :, :count] = cache[:, source, :, :count]

    def swap(self, one: int, other: int, count: int) -> None:
        """Exchange the first ``count`` places of two rows."""
        for cache in (self.keys, self.values):
            kept = cache[:, one, :, :count].clone()
            cache[:, one, :, :count] = cache[:, other, :, :count]
            cache[:, other, :, :count] = kept

    def wipe(self, row: int) -> None:
        """Set a row to zero, as it may hold NaN."""
        self.keys[:, row].zero_()
        self.values[:, row].zero_()

    def _projected(self, layer: _Layer, x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        sizes = [heads * self._size for heads in (self._heads, self._kv_heads, self._kv_heads)]
        q, k, v = torch.split(functional.linear(self._normed(x, layer.before_attention), layer.qkv), sizes, -1)
        return q.view(count, -1, self._size), k.view(count, -1, self._size), v.view(count, -1, self._size)

    def _after_attention(self, layer: _Layer, x: Tensor, heard: Tensor) -> Tensor:
        x = x + functional.linear(heard, layer.out)
        gate, up = functional.linear(self._normed(x, layer.before_mlp), layer.gate_up).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, layer.down)

    def _logits(self, x: Tensor) -> Tensor:
        return functional.linear(self._normed(x, self._norm), self._head).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        full = x.float()
        full = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self._eps)
        return weight * full.to(x.dtype)


class _Layer:
    """The weights of one layer; those that are applied to the same input are in one tensor."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before_attention: Tensor = layer.input_layernorm.weight.detach()
        self.before_mlp: Tensor = layer.post_attention_layernorm.weight.detach()
        self.qkv = _in_one(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out: Tensor = attention.o_proj.weight.detach()
        self.gate_up = _in_one(mlp.gate_proj, mlp.up_proj)
        self.down: Tensor = mlp.down_proj.weight.detach()


def _attention_in_blocks(q: Tensor, keys: Tensor, values: Tensor, *, attn_mask: Tensor) -> Tensor:
    """Attention over blocks of :data:`BLOCK` places, which gives a row the same bits however many places are read.

    torch's own rounds a row's sums differently for each number of places, which the longest row decides. Here a block
    behind a row's last place adds zero to them. The first place is never masked.
    """
    rows, heads, group, size = q.shape
    q = (q * size**-0.5).reshape(rows * heads, group, size)
    summed = total = top = torch.empty(0)
    for begin in range(0, keys.shape[2], BLOCK):
        block = slice(begin, begin + BLOCK)
        scores = torch.bmm(q, keys[:, :, block].flatten(0, 1).transpose(1, 2)).float().view(rows, heads, group, -1)
        # Finite, as two infinities have no difference.
        scores = scores.masked_fill(~attn_mask[..., block], _LOWEST)
        peak = scores.amax(-1, keepdim=True)
        weights = (scores - peak).exp()
        count = weights.sum(-1, keepdim=True)
        flat = weights.to(values.dtype).view(rows * heads, group, -1)
        found = torch.bmm(flat, values[:, :, block].flatten(0, 1)).float().view(rows, heads, group, size)
        if begin:
            highest = torch.maximum(top, peak)
            earlier, here = (top - highest).exp(), (peak - highest).exp()
            found, count, peak = summed * earlier + found * here, total * earlier + count * here, highest
        summed, total, top = found, count, peak
    return (summed / total).to(values.dtype)


def _in_one(*linears: Any) -> Tensor:
    """The modules' weights in one tensor. The modules get views of it, so no weight is in memory twice."""
    whole = torch.cat([linear.weight.detach() for linear in linears])
    begin = 0
    for linear in linears:
        end = begin + linear.weight.shape[0]
        linear.weight.data = whole[begin:end]
        begin = end
    return whole


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def _theta(config: Any) -> float:
    # transformers 5 has it in a mapping.
    given = getattr(config, "rope_parameters", None) or {}
    return float(given.get("rope_theta") or config.rope_theta)


def _check(llama: Any) -> None:
    """Raise UpstreamError that names all differences from the model that this module computes."""
    config = getattr(llama, "config", None)
    problems = []
    for name, allowed in _TAKEN_FOR_GRANTED.items():
        if (value := getattr(config, name, None)) not in allowed:
            problems.append(f"{name} is {value!r}, not {allowed[0]!r}")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        problems.append(f"rope_scaling is of type {kind!r}")
    try:
        problems += _wrong_shapes(llama)
    except AttributeError as error:
        problems.append(str(error))
    if problems:
        raise UpstreamError(
            "the language model of this checkpoint is not the Llama that GLM-TTS was published with "
            f'({"; ".join(problems[:8])}): set batching = "off" in [engine.glmtts], which runs it by upstream\'s code'
        )


def _wrong_shapes(llama: Any) -> list[str]:
    config = llama.config
    hidden, size = config.hidden_size, head_size(config)
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    vocabulary = llama.model.embed_tokens.weight.shape[0]
    wanted = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if len(llama.model.layers) != config.num_hidden_layers:
        return [f"it has {len(llama.model.layers)} layers, not {config.num_hidden_layers}"]
    for number in range(config.num_hidden_layers):
        of_layer = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (config.intermediate_size, hidden),
            "mlp.up_proj": (config.intermediate_size, hidden),
            "mlp.down_proj": (hidden, config.intermediate_size),
        }
        wanted |= {f"model.layers.{number}.{name}.weight": shape for name, shape in of_layer.items()}
    there = dict(llama.named_parameters(remove_duplicate=False))
    problems = [
        f"{name} has the shape {tuple(there[name].shape)}, not {shape}" if name in there else f"{name} is missing"
        for name, shape in wanted.items()
        if name not in there or tuple(there[name].shape) != shape
    ]
    return problems + [f"{name} is unknown" for name in there if name.startswith("model.") and name not in wanted]
