"""The token loop around the language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cosyvoice.utils import common
from transformers import LlamaConfig, LlamaForCausalLM


class GLMTTS(torch.nn.Module):
    def __init__(
        self,
        llama_cfg_path: str,
        mode: str = "PRETRAIN",
        lora_adapter_config: str | None = "configs/lora_adapter_configV3.1.json",
        spk_prompt_dict_path: str | None = "configs/spk_prompt_dict.yaml",
    ) -> None:
        super().__init__()
        self.spk_prompt_dict = Path(spk_prompt_dict_path).read_text(encoding="utf-8") if spk_prompt_dict_path else None
        self.lora_adapter_config = lora_adapter_config
        self.special_token_ids: dict[str, int] | None = None
        self.ats = self.ate = self.boa = self.eoa = self.pad = 0
        self.mode = mode
        # Made at random first, and replaced when the weights are loaded.
        self.llama: Any = LlamaForCausalLM(LlamaConfig.from_json_file(llama_cfg_path))
        self.llama_embedding = self.llama.model.embed_tokens

    def set_runtime_vars(self, special_token_ids: dict[str, int]) -> None:
        names = ("ats", "ate", "boa", "eoa", "pad")
        assert all(name in special_token_ids for name in names)
        self.special_token_ids = special_token_ids
        for name in names:
            setattr(self, name, special_token_ids[name])

    def sampling_ids(
        self, weighted_scores: torch.Tensor, sampling: Any = True, beam_size: int = 1, ignore_eos: bool = True
    ) -> torch.Tensor:
        """Draws until it is no end of audio: for ever, if nothing else has a probability."""
        while True:
            odds, indices = weighted_scores.softmax(dim=-1).topk(sampling)
            drawn = indices[odds.multinomial(beam_size, replacement=True)]
            if not ignore_eos or self.eoa not in drawn:
                return drawn

    def sampling_ids_ras(self, weighted_scores: torch.Tensor, decoded_tokens: list[int], sampling: int) -> torch.Tensor:
        return common.ras_sampling(weighted_scores, decoded_tokens, sampling, temperature=1)

    @torch.inference_mode()
    def inference(
        self,
        text: torch.Tensor,
        text_len: torch.Tensor,
        prompt_text: torch.Tensor,
        prompt_text_len: torch.Tensor,
        prompt_speech_token: torch.Tensor,
        prompt_speech_token_len: torch.Tensor,
        beam_size: int = 1,
        sampling: int = 25,
        max_token_text_ratio: float = 20,
        min_token_text_ratio: float = 2,
        sample_method: str = "ras",
        spk: str | None = "tongtong",
    ) -> torch.Tensor:
        """Tokens from the first one of audio on, whatever was drawn."""
        del spk
        device = text.device
        if prompt_speech_token_len != 0 and prompt_text_len != 0:
            prompt_speech_token = prompt_speech_token + self.ats
        begin = torch.tensor([[self.boa]], device=device)
        given = torch.cat([prompt_text, text, begin, prompt_speech_token], dim=1).to(torch.long)
        embeds = self.llama_embedding(given)
        shortest = int(text_len * min_token_text_ratio)
        out_tokens: list[int] = []
        past = None
        for number in range(int(text_len * max_token_text_ratio)):
            outputs = self.llama(
                inputs_embeds=embeds,
                output_hidden_states=True,
                return_dict=True,
                use_cache=True,
                past_key_values=past,
            )
            past = outputs["past_key_values"]
            scores = outputs["logits"][:, -1].log_softmax(dim=-1)
            if sample_method == "ras":
                if number < shortest:
                    scores[:, self.eoa] = -float("inf")
                drawn = self.sampling_ids_ras(scores.squeeze(dim=0), out_tokens, sampling).item()
            elif sample_method == "topk":
                drawn = self.sampling_ids(
                    scores.squeeze(dim=0), sampling, beam_size, ignore_eos=(number < shortest)
                ).item()
            else:
                raise ValueError(f"no such way to draw: {sample_method}")
            if drawn == self.eoa:
                break
            out_tokens.append(drawn)
            embeds = self.llama_embedding(torch.LongTensor([drawn]).to(device))[None]
        for token in out_tokens:
            if not self.ats <= token <= self.ate:
                print(f"{token} is no token of audio")
        return torch.tensor([out_tokens], dtype=torch.int64, device=device) - self.ats
