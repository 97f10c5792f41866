"""Upstream's flow model a step at a time, and its vocoder, with the random numbers of one job.

It uses upstream's modules and weights, and computes the same as upstream's ``inference_with_cache``: guidance's
two passes as one batch, and the parts that are the same in all passes only once (the embedding of the tokens, the
modulations of time and voice, rotary tables). Between two steps the engine decodes tokens of other jobs, and cancels.

One segment is a run by itself: another in the same batch would change the shape, and so the last bits of the audio,
and gains nothing, because a segment fills a GPU.

Imports torch, so the engine imports this module after it has chosen its device. Written against zai-org/GLM-TTS at
c5dc7ae.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from .upstream import UpstreamError
from .voices import VoiceFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Upstream's default number of steps from noise to a spectrogram.
STEPS = 10
#: On a GPU, lengths are multiples of this, in frames: a few dozen shapes, for the allocator and for libraries that
#: choose a kernel for each.
_GPU_MULTIPLE = 64
#: The largest difference from upstream, as a share of the largest change of a step, that rounding explains, with TF32
#: too.
_TOLERANCE = 0.01
#: The check's prompt and text, in tokens; their frames are no multiple of 64.
_CHECK_PROMPT, _CHECK_TEXT = 11, 9
_SPEAKER = 192


class Flow:
    """Upstream's flow model, for runs that are advanced side by side.

    Args:
        flow: Upstream's flow model.
        multiple: Pad to multiples of this many frames; None: 64 on a GPU, and no padding on a CPU, where it only costs
            time. The padding is masked, and changes the spectrogram by less than 1e-5.

    Raises:
        UpstreamError: The checkout's flow model does not compute the same as this module.
    """

    def __init__(self, flow: Any, *, multiple: int | None = None) -> None:
        self.model = flow
        weight = next(flow.estimator.parameters())
        self.device = weight.device
        self.multiple = multiple or (_GPU_MULTIPLE if self.device.type == "cuda" else 1)
        self.times, self.spans = _schedule(flow.t_scheduler)
        self._free: tuple[Any, Any] | None = None
        self._check()

    def start(self, tokens: Sequence[int], voice: VoiceFeatures, rate: int, generator: torch.Generator) -> FlowRun:
        """Begin the run of a segment.

        Args:
            tokens: The segment's speech tokens, 25 a second, from 0.
            voice: Whose voice it is; keeps what depends on it alone.
            rate: The sample rate, in Hz, whose spectrogram is made.
            generator: The job's random numbers, on the CPU: the noise is drawn here, as upstream draws it after the
                tokens.
        """
        return FlowRun(self, tokens, voice, rate, generator)

    @torch.inference_mode()
    def modulations(self, voice: VoiceFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """The modulations of each block, and of the end, by voice and time, for guidance's two passes.

        Returns:
            Of shape (2, steps, blocks, 6, width) and (2, steps, 2, width), on the device: scales with 1 added.
        """
        if voice.modulations is None:
            speaker = functional.normalize(voice.speaker.to(self.device), dim=1)
            voice.modulations = tuple(one.cpu() for one in self._modulations(speaker))
        if self._free is None:
            self._free = self._modulations(torch.zeros_like(voice.speaker, device=self.device))
        blocks, end = (
            torch.stack([own.to(self.device), free]) for own, free in zip(voice.modulations, self._free, strict=True)
        )
        return blocks, end

    def _modulations(self, speaker: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        net = self.model.estimator
        blocks, ends = [], []
        for time in self.times:
            # One at a time, as upstream does: a product of several rows rounds differently.
            given = torch.cat([net.time_embed(time[None].to(self.device)), speaker], dim=-1)
            norms = [block.attn_norm for block in net.transformer_blocks]
            blocks.append(torch.cat([norm.linear(norm.silu(given)) for norm in norms]))
            ends.append(net.norm_out.linear(net.norm_out.silu(given)))
        width = net.dim
        of_blocks = torch.stack(blocks).view(STEPS, -1, 6, width)
        of_end = torch.cat(ends).view(STEPS, 2, width)
        # Shift, scale and gate of the attention, then of the feed-forward; at the end, scale and shift.
        of_blocks[..., 1, :] += 1
        of_blocks[..., 4, :] += 1
        of_end[..., 0, :] += 1
        return of_blocks, of_end

    def _check(self) -> None:
        """Compare a step with upstream's own, on noise: a changed checkout would be heard only as bad speech."""
        try:
            difference, change = self._compared()
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            if "CUDA" in str(error):
                raise
            raise UpstreamError(_changed(f"{type(error).__name__}: {error}")) from error
        if not difference <= _TOLERANCE * change:
            raise UpstreamError(_changed(f"its result differs by {difference:.2g}, of {change:.2g}"))

    @torch.inference_mode()
    def _compared(self) -> tuple[float, float]:
        """The largest difference from upstream's last step, and the largest change that this makes."""
        draw = torch.Generator().manual_seed(0)
        prompt, text = (
            torch.randint(1_000, (count,), generator=draw).tolist() for count in (_CHECK_PROMPT, _CHECK_TEXT)
        )
        mel = torch.randn(1, 2 * _CHECK_PROMPT, self.model.mel_dim, generator=draw)
        voice = VoiceFeatures("", None, tuple(prompt), torch.randn(1, _SPEAKER, generator=draw), {0: mel})
        run = self.start(text, voice, 0, draw)
        begun_with: dict[int | str, Any] = {"override_len": run.state.shape[1]}
        while run.mel is None:
            # As upstream keeps it, to go on with another run: so both begin the last step with the same.
            begun_with[run.done + 1] = {"x": run.state}
            run.step()
        with own_random_numbers(draw, self.device):
            theirs, _ = self.model.inference_with_cache(
                token=torch.tensor([text], device=self.device),
                prompt_token=torch.tensor([prompt], dtype=torch.int32, device=self.device),
                prompt_feat=mel.to(self.device),
                embedding=voice.speaker.to(self.device),
                n_timesteps=STEPS,
                last_step_cache=begun_with,
            )
        change = theirs - begun_with[STEPS]["x"][:, mel.shape[1] :].transpose(1, 2)
        return float((run.mel - theirs).abs().max()), float(change.abs().max())


class FlowRun:
    """The run of one segment. It is dropped to cancel it: nothing else refers to it.

    ``done`` of STEPS steps are made. ``mel``: the segment's spectrogram, of shape (1, 80, t), after the last.
    """

    def __init__(
        self, flow: Flow, tokens: Sequence[int], voice: VoiceFeatures, rate: int, generator: torch.Generator
    ) -> None:
        self._flow = flow
        self.done = 0
        self.mel: torch.Tensor | None = None
        model = flow.model
        with torch.inference_mode():
            codes = torch.tensor([[*voice.speech_tokens, *tokens]], device=flow.device)
            prompt = voice.mels[rate]
            self._prompt = prompt.shape[1]
            self._length = frames = int(codes.shape[1] / model.input_frame_rate * model.mel_framerate)
            known = min(self._prompt, frames)
            self._x = self._padded(torch.randn(1, frames, model.mel_dim, generator=generator).to(flow.device))
            # Alone and not padded: its convolutions, and above all its norm over time, would mix the padding in.
            said = self._padded(model.estimator.text_emb_layer(codes, frames))
            heard = torch.zeros_like(self._x)
            heard[:, :known] = prompt[:, -known:].to(flow.device)
            # Guidance's two passes: with the voice, and without.
            self._given = torch.cat([torch.cat([heard, torch.zeros_like(heard)]), said.expand(2, -1, -1)], dim=-1)
            self._of_blocks, self._of_end = flow.modulations(voice)
            self._mask: torch.Tensor | None = None
            if self._x.shape[1] > frames:
                self._mask = torch.arange(self._x.shape[1], device=flow.device) < frames
            turns, _ = model.estimator.rotary_embed.forward_from_seq_len(self._x.shape[1])
            self._turns = turns.cos(), turns.sin()

    @property
    def state(self) -> torch.Tensor:
        """The frames that the next step begins with, of shape (1, t, 80), the prompt's included."""
        return self._x[:, : self._length]

    @torch.inference_mode()
    def step(self) -> bool:
        """Make one step from noise to spectrogram. Returns whether it was the last."""
        guidance = self._flow.model.inference_cfg_rate
        wanted, free = self._velocity().chunk(2)
        self._x = self._x + self._flow.spans[self.done] * ((1.0 + guidance) * wanted - guidance * free)
        self.done += 1
        if self.done == STEPS:
            self.mel = self._x[:, self._prompt : self._length].transpose(1, 2)
        return self.done == STEPS

    def _velocity(self) -> torch.Tensor:
        """Upstream's ``DiT.forward`` for both passes; of shape (2, t, 80)."""
        net = self._flow.model.estimator
        hidden = net.emb_concator.proj(torch.cat([self._x.expand(2, -1, -1), self._given], dim=-1))
        hidden = self._placed(hidden) + hidden
        for block, of_block in zip(net.transformer_blocks, self._of_blocks[:, self.done].unbind(1), strict=True):
            shift, scale, gate, shift_after, scale_after, gate_after = of_block[:, :, None].unbind(1)
            hidden = hidden + gate * self._attended(block.attn, block.attn_norm.norm(hidden) * scale + shift)
            hidden = hidden + gate_after * block.ff(block.ff_norm(hidden) * scale_after + shift_after)
        scale, shift = self._of_end[:, self.done, :, None].unbind(1)
        velocity: torch.Tensor = net.proj_out(net.norm_out.norm(hidden) * scale + shift)
        return velocity

    def _placed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The embedding of positions: two wide convolutions, with the padding set to zero before each."""
        first, bend, second, bend_again = self._flow.model.estimator.emb_concator.conv_pos_embed.conv1d
        hidden = self._silenced(hidden.transpose(1, 2))
        hidden = self._silenced(bend(first(hidden)))
        placed: torch.Tensor = bend_again(second(hidden)).transpose(1, 2)
        return placed

    def _silenced(self, channels: torch.Tensor) -> torch.Tensor:
        return channels if self._mask is None else channels.masked_fill(~self._mask, 0.0)

    def _attended(self, attention: Any, hidden: torch.Tensor) -> torch.Tensor:
        query, key = self._turned(attention.to_q(hidden)), self._turned(attention.to_k(hidden))
        shape = (*query.shape[:2], attention.heads, -1)
        query, key, value = (one.view(shape).transpose(1, 2) for one in (query, key, attention.to_v(hidden)))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=self._heeded())
        attended: torch.Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return attended

    def _heeded(self) -> torch.Tensor | None:
        """The mask of the frames that attention may use; None without padding."""
        return None if self._mask is None else self._mask[None, None, None]

    def _turned(self, features: torch.Tensor) -> torch.Tensor:
        """Rotated by position, in pairs; as upstream calls it, the first head alone."""
        cosine, sine = self._turns
        count = cosine.shape[-1]
        head, rest = features[..., :count], features[..., count:]
        turned = head * cosine + torch.stack([-head[..., 1::2], head[..., ::2]], dim=-1).flatten(-2) * sine
        return torch.cat([turned, rest], dim=-1)

    def _padded(self, frames: torch.Tensor) -> torch.Tensor:
        return functional.pad(frames, (0, 0, 0, -frames.shape[1] % self._flow.multiple))


def vocode(vocoder: Any, mel: torch.Tensor, generator: torch.Generator) -> NDArray[np.float32]:
    """The samples of a spectrogram, of shape (n,).

    Args:
        vocoder: Upstream's vocoder: HiFT at 24,000 Hz, a TorchScript at 32,000 Hz. One spectrogram at a time, unpadded:
            padding changes a fifth of a second before it, and a batch is not faster.
        mel: Of shape (1, 80, t).
        generator: The job's random numbers, on the CPU, from which phases and noise are drawn.
    """
    with torch.inference_mode(), own_random_numbers(generator, mel.device):
        wave = vocoder(mel)
    samples: NDArray[np.float32] = np.ascontiguousarray(wave.squeeze(0).float().cpu().numpy())
    return samples


@contextlib.contextmanager
def own_random_numbers(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Have torch's own generators, which upstream uses, draw from a job's.

    On a CPU they are the job's very numbers; on a GPU, those of a seed that is drawn from the job's.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        yield
        return
    default = torch.default_generator
    kept = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(kept)


def set_precision(precision: Literal["fp32", "tf32"]) -> None:
    """Set the precision of the products of fp32 matrices in this process, on CUDA. Called once, after the device.

    It applies to a language model in fp32 too.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _schedule(scheduler: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The time at which each step begins, and its length, added up as upstream does."""
    ends = torch.linspace(0, 1, STEPS + 1)
    if scheduler == "cosine":
        ends = 1 - torch.cos(ends * 0.5 * torch.pi)
    times, spans = [ends[0]], [ends[1] - ends[0]]
    for end in ends[2:]:
        times.append(times[-1] + spans[-1])
        spans.append(end - times[-1])
    return times, spans


def _changed(what: str) -> str:
    return (
        f"the flow model of this checkout is not the one that batching was written for (zai-org/GLM-TTS at c5dc7ae): "
        f'{what}. Set batching = "off" in [engine.glmtts], or check out that commit'
    )
