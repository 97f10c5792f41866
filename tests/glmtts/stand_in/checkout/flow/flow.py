"""The flow model: from noise, in ten steps, towards what the tokens and the voice ask for."""

from __future__ import annotations

from typing import Any

import torch
from cosyvoice.utils.mask import make_pad_mask
from torch.nn import functional

from flow.dit import DiT
from flow.modules import MEL


class Flow(torch.nn.Module):
    def __init__(
        self,
        vocab_size: int = 100_000,
        input_frame_rate: float = 12.5,
        mel_dim: int = MEL,
        mel_framerate: int = 86,
        speech_token_cfg: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        self.mel_dim = mel_dim
        self.input_frame_rate = input_frame_rate
        self.mel_framerate = mel_framerate
        self.speech_token_cfg = speech_token_cfg
        self.t_scheduler = "cosine"
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
    ) -> tuple[torch.Tensor, dict[int | str, Any]]:
        """The frames of ``token``, of shape (1, 80, t), and what each step began with."""
        del wavlm_emb_bt
        assert token.shape[0] == 1, "one at a time"
        if prompt_token is not None:
            token = torch.cat([prompt_token, token], dim=1)
        frames = int(token.shape[1] / self.input_frame_rate * self.mel_framerate)
        condition = torch.zeros([1, frames, self.mel_dim], device=token.device)
        known = min(prompt_feat.shape[1], frames)
        condition[:, :known] = prompt_feat[:, -known:]
        speaker = functional.normalize(embedding, dim=1)
        mask = (~make_pad_mask(torch.LongTensor([frames]))).to(token.device)
        rest = {"padding_mask_bt": mask, "is_causal": is_causal, "block_pattern": block_pattern}
        x = torch.randn_like(condition)
        steps = 1 - torch.cos(torch.linspace(0, 1, n_timesteps + 1, device=token.device) * 0.5 * torch.pi)
        begun_with: dict[int | str, Any] = {}
        now, span = steps[0], steps[1] - steps[0]
        for number in range(1, len(steps)):
            if last_step_cache is not None:
                known_x = last_step_cache[number]["x"]
                known = min(frames, last_step_cache.get("override_len", known_x.shape[-1]))
                x[:, :known] = known_x[:, :known]
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
            x = x + span * step
            now = now + span
            if number < n_timesteps:
                span = steps[number + 1] - now
        # Without the voice's own frames.
        return x[:, prompt_feat.shape[1] :].permute(0, 2, 1), begun_with
