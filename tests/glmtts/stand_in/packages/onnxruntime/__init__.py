"""What upstream uses of onnxruntime. The stand-in computes speaker embeddings by itself; the file must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class GraphOptimizationLevel:
    ORT_ENABLE_ALL = 99


class SessionOptions:
    graph_optimization_level = 0
    intra_op_num_threads = 0


class InferenceSession:
    def __init__(self, path: str, sess_options: Any = None, providers: Any = None) -> None:
        if not (model := Path(path).read_bytes()) or model.startswith(b"version https://git-lfs"):
            raise RuntimeError(f"Load model from {path} failed: protobuf parsing failed")
        self.options = (sess_options, providers)
