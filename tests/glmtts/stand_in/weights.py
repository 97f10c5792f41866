"""Writes what a root needs beside modules: ``ckpt/``, ``frontend/campplus.onnx``, ``configs/``, ``examples/``.

Run with the root as its argument, from a process of its own: it imports torch. The weights are random and always the
same.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import sys
import wave
from pathlib import Path
from typing import Any

import torch

_LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": False,
}
#: The first element of every embedding, and what the end of audio makes of it.
_STEADY, _END = 3.0, 13.5
_D_MODEL = 8
_MEL_LOGDIFF = -7.847762537473608
#: Rows of the flow model's embedding: more than there are tokens of audio, as upstream has.
_FLOW_VOCABULARY = 40_000
#: Characters that stay as they are where phonemes are asked for.
_ABLE = "今天气不错我们去公园散步吧你好世界的一是了在人有这个上大来他到说时要就出会可也以中"


def write(root: Path) -> None:
    torch.manual_seed(20)
    sys.path[:0] = [str(root)]
    _tokenizer(root / "ckpt" / "vq32k-phoneme-tokenizer")
    _language_model(root / "ckpt" / "llm")
    _flow(root / "ckpt" / "flow")
    _vocoders(root / "ckpt")
    _speech_tokenizer(root / "ckpt" / "speech_tokenizer")
    (root / "frontend").mkdir(exist_ok=True)
    # The version of the format, and a graph of nothing.
    (root / "frontend" / "campplus.onnx").write_bytes(b"\x08\x08\x3a\x08stand-in")
    _configs(root / "configs")
    _examples(root / "examples")


def _tokenizer(folder: Path) -> None:
    from vocabulary import special_tokens

    folder.mkdir(parents=True)
    ranks = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "tokenizer.model").write_text(ranks)
    (folder / "tokenization_stand_in.py").write_text(
        '"""The stand-in\'s tokenizer is in its transformers package."""\n\n'
        'vocab_files_names = {"vocab_file": "tokenizer.model"}\n'
    )
    added = {str(id): {"content": name, "special": True} for name, id in special_tokens().items()}
    config = {"tokenizer_class": "StandInTokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _language_model(folder: Path) -> None:
    from mischief import NUMBERS
    from transformers import LlamaConfig, LlamaForCausalLM
    from vocabulary import AUDIO, FIRST_AUDIO, MISCHIEF, SIZE, USER

    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": SIZE} | _LLAMA
    (folder / "config.json").write_text(json.dumps(config))
    state = LlamaForCausalLM(LlamaConfig(**config)).state_dict()
    for name, tensor in state.items():
        if not name.endswith("norm.weight"):
            tensor.normal_(std=1 / tensor.shape[-1] ** 0.5)
    embedding, head = state["model.embed_tokens.weight"], state["lm_head.weight"]
    embedding.normal_()
    # The first element is the same at every place and in every layer: it stands for the bias that a Llama lacks.
    embedding[:, 0] = _STEADY
    for layer in range(_LLAMA["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.o_proj.weight"][0] = 0
        state[f"model.layers.{layer}.mlp.down_proj.weight"][0] = 0
    embedding[:, -1] = 0
    for word, number in NUMBERS.items():
        embedding[MISCHIEF + number, -1] = number
        if word == "notanumber":
            embedding[MISCHIEF + number, 1] = float("nan")
    # Only audio is drawn by itself, and of it not the last eight; its end is about as likely as the likeliest.
    head.normal_(std=1.6)
    head[:, 0] = -1e4
    head[FIRST_AUDIO : FIRST_AUDIO + AUDIO - 8, 0] = 0
    head[USER] = 0
    head[USER, 0] = _END
    _write_safetensors(folder / "model.safetensors", state)


def _flow(folder: Path) -> None:
    from flow.flow import Flow
    from flow.modules import fill

    folder.mkdir(parents=True)
    settings = {
        "speech_token_cfg": False,
        "mel_dim": 80,
        "mel_framerate": 50,
        "input_frame_rate": 25,
        "vocab_size": _FLOW_VOCABULARY,
    }
    lines = [f"    {key}: {value}\n" for key, value in settings.items()]
    (folder / "config.yaml").write_text("flow: !new:flow.flow.Flow\n" + "".join(lines))
    flow = Flow(vocab_size=_FLOW_VOCABULARY, input_frame_rate=25, mel_framerate=50)
    with torch.no_grad():
        fill(flow.estimator, flow.inference_cfg_rate)
    torch.save({"model": flow.state_dict()}, folder / "flow.pt")


def _vocoders(folder: Path) -> None:
    from cosyvoice.hifigan_cosy2.generator import Tone

    for name in ("hift", "vocos2d"):
        (folder / name).mkdir(parents=True)
    torch.save(Tone(24_000, 480).state_dict(), folder / "hift" / "hift.pt")

    class Generator(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tone = Tone(32_000, 640)
            self.offset = _MEL_LOGDIFF

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.tone(frames - self.offset)

    torch.jit.script(Generator()).save(str(folder / "vocos2d" / "generator_jit.ckpt"))


def _speech_tokenizer(folder: Path) -> None:
    from utils.whisper_models.configuration_whisper import WhisperVQConfig
    from utils.whisper_models.modeling_whisper import WhisperVQEncoder

    folder.mkdir(parents=True)
    config = {"d_model": _D_MODEL, "pooling_kernel_size": 2, "quantize_vocab_size": 32_768, "model_type": "whisper"}
    (folder / "config.json").write_text(json.dumps(config))
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "hop_length": 160, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(features | {"sampling_rate": 16_000}))
    state = WhisperVQEncoder(WhisperVQConfig(**config)).state_dict()
    # Brightness is in bins, up to 200.
    state["conv1.weight"][:, 1] *= 0.05
    _write_safetensors(folder / "model.safetensors", {f"model.encoder.{name}": state[name] for name in state})


def _write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Eight bytes of length, a header in JSON, and the data of all tensors in a row."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blocks = []
    end = 0
    for name, tensor in state.items():
        data = tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
        blocks.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def _configs(folder: Path) -> None:
    from vocabulary import PHONEME_NAMES

    folder.mkdir(exist_ok=True)
    (folder / "G2P_able_1word.json").write_text(json.dumps(list(_ABLE), ensure_ascii=False))
    (folder / "G2P_all_phonemes.json").write_text(json.dumps(dict(enumerate(PHONEME_NAMES))))
    (folder / "G2P_replace_dict.jsonl").write_text('{"弈": "<|I4|>"}\n{"琴弦": "<|Q|><|IN2|><|X|><|IAN2|>"}\n')
    (folder / "custom_replace.jsonl").write_text('{"origin": "喔", "new": "哦"}\n')
    (folder / "spk_prompt_dict.yaml").write_text("nobody: [1, 2, 3]\n")
    (folder / "lora_adapter_configV3.1.json").write_text('{"r": 8}\n')


def _examples(folder: Path) -> None:
    (folder / "prompt").mkdir(parents=True)
    recording = folder / "prompt" / "hum.wav"
    rate = 24_000
    samples = [round(9_000 * math.sin(2 * math.pi * 180 * n / rate)) for n in range(2 * rate)]
    with wave.open(str(recording), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    line = {
        "uttid": "0",
        "prompt_text": "你好。",
        "prompt_speech": "examples/prompt/hum.wav",
        "syn_text": "今天天气不错。",
    }
    (folder / "example_zh.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
