"""Loads the speech tokenizer and the flow model."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperFeatureExtractor
from transformers.llama import _read_safetensors

from utils.whisper_models.configuration_whisper import WhisperVQConfig
from utils.whisper_models.modeling_whisper import WhisperVQEncoder


def load_flow_model(flow_ckpt_path: str, config_path: str, device: Any) -> torch.nn.Module:
    text = Path(config_path).read_text(encoding="utf-8")
    module, _, name = re.findall(r"^flow: !new:(\S+)", text, re.M)[0].rpartition(".")
    settings = {key: ast.literal_eval(value) for key, value in re.findall(r"^ +(\w+): (\S+)$", text, re.M)}
    flow: torch.nn.Module = getattr(importlib.import_module(module), name)(**settings)
    state = torch.load(flow_ckpt_path, map_location=device)
    flow.load_state_dict(state["model"] if type(state) is dict else state)
    return flow.to(device).eval()


def load_speech_tokenizer(model_path: str) -> tuple[WhisperVQEncoder, WhisperFeatureExtractor]:
    print(f"speech tokenizer: {model_path}")
    model = WhisperVQEncoder(WhisperVQConfig.from_pretrained(model_path))
    state = {}
    for path in Path(model_path).glob("model*.safetensors"):
        state |= {name.removeprefix("model.encoder."): tensor for name, tensor in _read_safetensors(path).items()}
    model.load_state_dict(state)
    model.eval()
    model.cuda()
    return model, WhisperFeatureExtractor.from_pretrained(model_path)
