"""A GLM-TTS root as far as its files' formats go: small, and with nothing in it that could speak."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from glmtts.daemon.engines.glmtts.checkpoint import _CONFIGS, _SOURCES

LAYERS = 2


def make(root: Path) -> Path:
    """Write it to ``root``, which need not be there, and return that."""
    for name in (*_SOURCES, *_CONFIGS):
        write(root / name, f"# {name}\n".encode())
    write(
        root / "configs/custom_replace.jsonl", '{"origin": "噢", "new": "哦"}\n{"origin": "欸", "new": "诶"}'.encode()
    )
    write(root / "configs/G2P_replace_dict.jsonl", '{"弈": "<|I4|>"}\n\n'.encode())
    write_json(root / "configs/G2P_all_phonemes.json", {"0": "I4"})
    write(root / "frontend/campplus.onnx", b"\x08\x08" + b"g" * 300)
    ckpt = root / "ckpt"
    write_json(ckpt / "llm/config.json", {"num_hidden_layers": LAYERS, "tie_word_embeddings": True})
    safetensors(ckpt / "llm/model.safetensors", llm_tensors())
    write(ckpt / "flow/config.yaml", b"flow: !new:own_flow.Flow\n    mel_dim: 80\n")
    write(root / "own_flow.py", b"# what the configuration names\n")
    torch_zip(ckpt / "flow/flow.pt", 400)
    torch_zip(ckpt / "hift/hift.pt", 800)
    torch_zip(ckpt / "vocos2d/generator_jit.ckpt", 1_200)
    write_json(ckpt / "speech_tokenizer/config.json", {"quantize_position": 1})
    write_json(ckpt / "speech_tokenizer/preprocessor_config.json", {})
    tokenizer = {"conv1.weight": 30, "layers.0.fc1.weight": 20, "layers.1.fc1.weight": 7, "layer_norm.weight": 5}
    safetensors(
        ckpt / "speech_tokenizer/model.safetensors",
        {f"model.encoder.{name}": count for name, count in tokenizer.items()} | {"model.decoder.a": 1_000},
    )
    named = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    write_json(ckpt / "vq32k-phoneme-tokenizer/tokenizer_config.json", {"auto_map": named})
    write(ckpt / "vq32k-phoneme-tokenizer/tokenization_own.py", b'vocab_files_names = {"vocab_file": "own.model"}\n')
    write(ckpt / "vq32k-phoneme-tokenizer/own.model", b"IQ== 0\n")
    return root


def llm_tensors() -> dict[str, int]:
    tensors = {"model.embed_tokens.weight": 100, "model.norm.weight": 10, "lm_head.weight": 100}
    return tensors | {f"model.layers.{number}.mlp.up_proj.weight": 25 for number in range(LAYERS)}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    write(path, json.dumps(value).encode())


def safetensors(path: Path, elements: dict[str, int], *, fill: bytes = b"\1") -> None:
    """Tensors of 32-bit floats, of one dimension each, filled with ``fill``; b"": with a hole that no disk holds."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, count in elements.items():
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [end, end + 4 * count]}
        end += 4 * count
    text = json.dumps(header).encode()
    write(path, len(text).to_bytes(8, "little") + text + fill * end)
    os.truncate(path, 8 + len(text) + end)


def torch_zip(path: Path, size: int, *, fill: bytes = b"\2") -> None:
    """``size`` bytes of tensors in two records, as torch.save and torch.jit.save write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", fill * (size // 4))
        archive.writestr("archive/constants/0", fill * (size - size // 4))
        archive.writestr("archive/version", b"3\n")
