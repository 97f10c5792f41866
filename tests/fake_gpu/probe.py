"""A process with the real pynvml and the CUDA driver's caller of the fault engine, which does what a test tells it.

Parent's side: ``with Probe(gpus.environment()) as probe: probe("n.nvmlDeviceGetCount()")``. Expressions are answered
with their value (as JSON), statements with None; what they raise comes back as ProbeError. Known in there are ``n``
(pynvml; to be initialised with ``n.nvmlInit()``), ``FaultGpu``, ``MIB``, ``os``, ``ctypes``, ``load`` of the engines,
and ``speak(engine, fault=..., mib=...)``, which tells how many samples there were.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any


class ProbeError(Exception):
    """What was raised in there: ``kind`` is the name of its type, ``code`` NVML's or CUDA's number or our word."""

    def __init__(self, kind: str, message: str, code: int | str | None, fatal: bool = False) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.code, self.fatal = kind, message, code, fatal


class Probe:
    """The process, from outside."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment}, cwd="/",
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, source: str) -> Any:
        self.send(source)
        return self.answer()

    def send(self, source: str) -> None:
        """Begin something whose answer is taken later."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(source) + "\n")
        self.process.stdin.flush()

    def answer(self, patience_s: float = 20.0) -> Any:
        """The answer to the oldest question without one."""
        assert self.process.stdout
        # A probe that hangs must not hang its test.
        watchdog = threading.Timer(patience_s, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        if not line:
            raise AssertionError(f"the probe ended, or said nothing in {patience_s} s")
        answer = json.loads(line)
        if "kind" in answer:
            raise ProbeError(**answer)
        return answer["value"]

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out; reaped."""
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


def _serve() -> None:
    import ctypes

    import pynvml

    from glmtts.daemon.engines import load
    from glmtts.daemon.engines.base import EngineBase, Utterance
    from glmtts.daemon.engines.fault.gpu import FaultGpu
    from glmtts.daemon.engines.options import FaultOptions

    def speak(engine: EngineBase, **options: Any) -> int:
        utterance = Utterance("hello", None, None, 24_000, 0, FaultOptions(**options))
        return sum(len(piece.samples) for piece in engine.synthesize(utterance))

    known: dict[str, Any] = {"n": pynvml, "FaultGpu": FaultGpu, "MIB": 1 << 20, "os": os, "ctypes": ctypes}
    known |= {"load": load, "speak": speak}
    for line in sys.stdin:
        source = json.loads(line)
        try:
            try:
                code = compile(source, "probe", "eval")
            except SyntaxError:
                code = compile(source, "probe", "exec")
            answer: dict[str, Any] = {"value": eval(code, known)}
            text = json.dumps(answer, default=lambda value: value.decode() if isinstance(value, bytes) else repr(value))
        except Exception as error:
            number = next(
                (getattr(error, name) for name in ("value", "error_code", "code") if hasattr(error, name)), None
            )
            fatal = bool(getattr(error, "fatal", False))
            text = json.dumps({"kind": type(error).__name__, "message": str(error), "code": number, "fatal": fatal})
        print(text, flush=True)


if __name__ == "__main__":
    _serve()
