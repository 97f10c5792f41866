"""Loads the models and speaks. Written for tests, from scratch: the names, arguments and habits are upstream's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cosyvoice.cli.frontend import SpeechTokenizer, TextFrontEnd, TTSFrontEnd
from llm.glmtts import GLMTTS
from transformers import AutoTokenizer, LlamaForCausalLM
from utils import seed_util, tts_model_util, yaml_util
from utils.audio import mel_spectrogram

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAX_LLM_SEQ_INP_LEN = 750
TOKEN_RATE = 25

_NAMES = {
    "ats": "<|audio_0|>",
    "ate": "<|audio_32767|>",
    "boa": "<|begin_of_audio|>",
    "eoa": "<|user|>",
    "pad": "<|endoftext|>",
}

logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(levelname)s - %(message)s")


def get_special_token_ids(tokenize_fn: Callable[[str], list[int]]) -> dict[str, int]:
    lowest = tokenize_fn("<|endoftext|>")[0]
    ids = {}
    for name, token in _NAMES.items():
        numbers = tokenize_fn(token)
        if len(numbers) != 1:
            raise AssertionError(f"Token '{name}' ({token}) encoded to multiple tokens: {numbers}")
        if numbers[0] < lowest:
            raise AssertionError(f"Token '{name}' ({token}) ID {numbers[0]} is smaller than endoftext ID {lowest}")
        ids[name] = numbers[0]
    return ids


def _assert_shape_and_get_len(token: torch.Tensor) -> torch.Tensor:
    assert token.ndim == 2 and token.shape[0] == 1
    return torch.tensor([token.shape[1]], dtype=torch.int32).to(token.device)


def load_frontends(
    speech_tokenizer: SpeechTokenizer,
    sample_rate: int = 24_000,
    use_phoneme: bool = False,
    frontend_dir: str = "frontend",
) -> tuple[TTSFrontEnd, TextFrontEnd]:
    if sample_rate not in (24_000, 32_000):
        raise ValueError(f"no front end for {sample_rate} Hz")
    window = sample_rate * 2 // 25
    feat_extractor = partial(
        mel_spectrogram,
        sampling_rate=sample_rate,
        hop_size=window // 4,
        n_fft=window,
        num_mels=80,
        win_size=window,
        fmin=0,
        fmax=8_000,
        center=False,
    )
    print(f"front end for {sample_rate} Hz")
    tokenizer = AutoTokenizer.from_pretrained(str(Path("ckpt", "vq32k-phoneme-tokenizer")), trust_remote_code=True)
    frontend = TTSFrontEnd(
        tokenizer.encode,
        speech_tokenizer,
        feat_extractor,
        str(Path(frontend_dir, "campplus.onnx")),
        str(Path(frontend_dir, "spk2info.pt")),
        DEVICE,
    )
    return frontend, TextFrontEnd(use_phoneme)


def local_llm_forward(
    llm: GLMTTS,
    prompt_text_token: torch.Tensor,
    tts_text_token: torch.Tensor,
    prompt_speech_token: torch.Tensor,
    beam_size: int = 1,
    sampling: int = 25,
    sample_method: str = "ras",
) -> list[int]:
    tokens: list[int] = llm.inference(
        text=tts_text_token,
        text_len=_assert_shape_and_get_len(tts_text_token),
        prompt_text=prompt_text_token,
        prompt_text_len=_assert_shape_and_get_len(prompt_text_token),
        prompt_speech_token=prompt_speech_token,
        prompt_speech_token_len=_assert_shape_and_get_len(prompt_speech_token),
        beam_size=beam_size,
        sampling=sampling,
        sample_method=sample_method,
        spk=None,
    )[0].tolist()
    return tokens


def local_flow_forward(
    flow: Any, token_list: list[int], prompt_speech_tokens: Any, speech_feat: Any, embedding: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    wav, full_mel = flow.token2wav_with_cache(
        token_list, prompt_token=prompt_speech_tokens, prompt_feat=speech_feat, embedding=embedding
    )
    return wav.detach().cpu(), full_mel


def get_cached_prompt(
    cache: dict[str, Any], synth_text_token: torch.Tensor, device: torch.device = DEVICE
) -> tuple[torch.Tensor, torch.Tensor]:
    """All that was said so far; the oldest goes, but for the voice's own, where it would be too much."""
    texts, speech = cache["cache_text_token"], cache["cache_speech_token"]
    heard = sum(one.shape[1] for one in texts)
    expected = int(sum(map(len, speech)) / (heard or 1.0) * synth_text_token.shape[1])
    while sum(map(len, speech)) + expected > MAX_LLM_SEQ_INP_LEN and len(speech) > 1:
        for name in ("cache_text", "cache_text_token", "cache_speech_token"):
            cache[name].pop(1)
    said = [token for one in texts for token in one.squeeze().tolist()]
    spoken = [token for one in speech for token in one]
    return torch.tensor([said]).to(device), torch.tensor([spoken], dtype=torch.int32).to(device)


def generate_long(
    frontend: TTSFrontEnd,
    text_frontend: TextFrontEnd,
    llm: GLMTTS,
    flow: Any,
    text_info: list[str],
    cache: dict[str, Any],
    device: torch.device,
    embedding: torch.Tensor,
    seed: int = 0,
    sample_method: str = "ras",
    flow_prompt_token: torch.Tensor | None = None,
    speech_feat: torch.Tensor | None = None,
    local_llm_forward: Callable[..., list[int]] = local_llm_forward,
    local_flow_forward: Callable[..., tuple[torch.Tensor, torch.Tensor]] = local_flow_forward,
    use_phoneme: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, list[int], dict[str, Any]]:
    """Speaks segment by segment, and returns all at the end."""
    uttid, text = text_info[:2]
    outputs, mels, tokens = [], [], []
    said: dict[str, Any] = {"uttid": uttid, "syn_text": text, "syn_text_tn": [], "syn_text_phoneme": []}
    for segment in text_frontend.split_by_len(text):
        seed_util.set_seed(seed)
        normal = text_frontend.text_normalize(segment)
        said["syn_text_tn"].append(normal)
        if use_phoneme:
            normal = text_frontend.g2p_infer(normal)
            said["syn_text_phoneme"].append(normal)
        text_token = frontend._extract_text_token(normal)
        if cache["use_cache"] and len(cache["cache_text_token"]) > 1:
            prompt_text, prompt_speech = get_cached_prompt(cache, text_token, device)
        else:
            prompt_text = cache["cache_text_token"][0].to(device)
            prompt_speech = torch.tensor([cache["cache_speech_token"][0]], dtype=torch.int32).to(device)
        drawn = local_llm_forward(
            llm=llm,
            prompt_text_token=prompt_text,
            tts_text_token=text_token,
            prompt_speech_token=prompt_speech,
            sample_method=sample_method,
        )
        tokens.extend(drawn)
        output, mel = local_flow_forward(
            flow=flow,
            token_list=drawn,
            prompt_speech_tokens=flow_prompt_token,
            speech_feat=speech_feat,
            embedding=embedding,
        )
        cache["cache_text"].append(normal)
        cache["cache_text_token"].append(text_token)
        cache["cache_speech_token"].append(drawn)
        outputs.append(output)
        if mel is not None:
            mels.append(mel)
    return torch.concat(outputs, dim=1), torch.concat(mels, dim=-1) if mels else None, tokens, said


def load_models(use_phoneme: bool = False, sample_rate: int = 24_000) -> tuple[Any, ...]:
    speech_tokenizer = SpeechTokenizer(*yaml_util.load_speech_tokenizer(str(Path("ckpt", "speech_tokenizer"))))
    frontend, text_frontend = load_frontends(speech_tokenizer, sample_rate=sample_rate, use_phoneme=use_phoneme)
    folder = Path("ckpt", "llm")
    llm = GLMTTS(llama_cfg_path=str(folder / "config.json"), mode="PRETRAIN")
    llm.llama = LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32).to(DEVICE)
    llm.llama_embedding = llm.llama.model.embed_tokens
    llm.set_runtime_vars(special_token_ids=get_special_token_ids(frontend.tokenize_fn))
    flow = yaml_util.load_flow_model(
        str(Path("ckpt", "flow", "flow.pt")), str(Path("ckpt", "flow", "config.yaml")), DEVICE
    )
    token2wav = tts_model_util.Token2Wav(flow, sample_rate=sample_rate, device=DEVICE)
    return frontend, text_frontend, speech_tokenizer, llm, token2wav
