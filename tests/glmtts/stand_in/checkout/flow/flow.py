"""The flow model: from noise, in ten steps, towards what the tokens and the voice ask for."""

from __future__ import annotations

import time
from typing import Any

import torch
from mischief import SLOW_FLOW_S, SLOW_TOKEN
from torch.nn import functional

_MEL = 80
_PITCH = 16
_LOUDNESS = 16
_HASTE = 3.0


class DiT(torch.nn.Module):
    """Which way to go from a point: towards pitch and loudness of the voice, and what is said."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_embed = torch.nn.Embedding(vocab_size, _MEL - _PITCH - _LOUDNESS)

    def forward(
        self,
        middle_point_btd: torch.Tensor,
        condition_btd: torch.Tensor,
        text: torch.Tensor,
        time_step_1d: torch.Tensor,
        padding_mask_bt: torch.Tensor,
        is_causal: bool = False,
        spkr_emb_bd: torch.Tensor | None = None,
        block_pattern: list[int] | None = None,
    ) -> torch.Tensor:
        del padding_mask_bt, is_causal, block_pattern
        assert spkr_emb_bd is not None
        frames = middle_point_btd.shape[1]
        codes = functional.interpolate(text.unsqueeze(1).float(), size=frames, mode="nearest").squeeze(1).long()
        if (codes == SLOW_TOKEN).any():
            time.sleep(SLOW_FLOW_S)
        said = self.text_embed(codes)
        scale = spkr_emb_bd[:, 1:2]
        pitch = torch.where(scale == 0, torch.zeros_like(scale), spkr_emb_bd[:, :1] / scale)
        # A spectrogram's logarithms lie between -12 and 2; without one, there is nothing.
        heard = (condition_btd != 0).any(-1, keepdim=True)
        level = ((condition_btd.mean(-1, keepdim=True) + 12) / 14 * heard).sum(1) / heard.sum(1).clamp(min=1)
        loudness = level[:, None].expand(-1, frames, _LOUDNESS)
        goal = torch.cat([pitch[:, None].expand(-1, frames, _PITCH), loudness, said], dim=-1)
        return _HASTE * (goal - middle_point_btd) + 0.001 * time_step_1d


class Flow(torch.nn.Module):
    def __init__(
        self,
        vocab_size: int = 100_000,
        input_frame_rate: float = 12.5,
        mel_dim: int = _MEL,
        mel_framerate: int = 86,
        speech_token_cfg: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        self.mel_dim = mel_dim
        self.input_frame_rate = input_frame_rate
        self.mel_framerate = mel_framerate
        self.speech_token_cfg = speech_token_cfg
        self.inference_cfg_rate = 0.7
        self.estimator = DiT(vocab_size)

    @torch.inference_mode()
    def inference_with_cache(
        self,
        token: torch.Tensor,
        prompt_token: torch.Tensor | None,
        prompt_feat: torch.Tensor,
        embedding: torch.Tensor,
        n_timesteps: int = 10,
        last_step_cache: Any = None,
        wavlm_emb_bt: Any = None,
        is_causal: bool = False,
        block_pattern: list[int] | None = None,
    ) -> tuple[torch.Tensor, dict[int, Any]]:
        """The frames of ``token``, of shape (1, 80, t), and what each step began with."""
        del last_step_cache, wavlm_emb_bt
        assert token.shape[0] == 1, "one at a time"
        if prompt_token is not None:
            token = torch.cat([prompt_token, token], dim=1)
        frames = int(token.shape[1] / self.input_frame_rate * self.mel_framerate)
        condition = torch.zeros([1, frames, self.mel_dim], device=token.device)
        known = min(prompt_feat.shape[1], frames)
        condition[:, :known] = prompt_feat[:, -known:]
        speaker = functional.normalize(embedding, dim=1)
        rest = {"padding_mask_bt": torch.ones([1, frames]), "is_causal": is_causal, "block_pattern": block_pattern}
        x = torch.randn_like(condition)
        steps = 1 - torch.cos(torch.linspace(0, 1, n_timesteps + 1, device=token.device) * 0.5 * torch.pi)
        begun_with = {}
        for number in range(1, len(steps)):
            now = steps[number - 1]
            begun_with[number] = {"x": x.clone().detach()}
            wanted = self.estimator(
                middle_point_btd=x,
                condition_btd=condition,
                text=token,
                time_step_1d=now[None],
                spkr_emb_bd=speaker,
                **rest,
            )
            free = self.estimator(
                middle_point_btd=x,
                condition_btd=torch.zeros_like(condition),
                text=torch.zeros_like(token) if self.speech_token_cfg else token,
                time_step_1d=now[None],
                spkr_emb_bd=torch.zeros_like(speaker),
                **rest,
            )
            step = (1 + self.inference_cfg_rate) * wanted - self.inference_cfg_rate * free
            x = x + (steps[number] - now) * step
        # Without the voice's own frames; what guidance stretches and the steps don't quite reach is put right.
        made = x[:, prompt_feat.shape[1] :].clone()
        reached = 1 - torch.prod(1 - _HASTE * steps.diff())
        made[:, :, : _PITCH + _LOUDNESS] /= (1 + self.inference_cfg_rate) * reached
        return made.permute(0, 2, 1), begun_with
