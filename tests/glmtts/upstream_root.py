"""What the tests of the glmtts engine run against, and what upstream itself makes of the same jobs.

By default that is the stand-in and this interpreter; GLMTTS_ROOT and GLMTTS_PYTHON name a checkout of upstream with a
checkpoint, and the interpreter that has its packages.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

import glmtts.daemon
from glmtts.daemon.core.settings import GlmttsEngineSettings

_HERE = Path(__file__).parent
#: With real upstream, a start takes as long as its imports.
REFERENCE_DEADLINE_S = 600.0
PROMPT_TEXT = "你好。"

Samples = NDArray[np.float32]
#: What becomes of a text; see upstream_texts.py.
Ask = Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class Root:
    """A root, who runs it, and a folder for what is compiled once."""

    folder: Path
    python: str
    cache: Path
    is_stand_in: bool

    @property
    def patience_s(self) -> float:
        """How long a worker may take to start, or to speak a segment. The real one compiles a grammar at first."""
        return 60.0 if self.is_stand_in else 240.0

    def settings(self, **changes: Any) -> dict[str, Any]:
        """``[engine.glmtts]`` for it, whole."""
        defaults: dict[str, Any] = msgspec.to_builtins(GlmttsEngineSettings(root=str(self.folder)))
        return defaults | changes

    def worker(self, **changes: Any) -> dict[str, Any]:
        """What a worker of it is started with."""
        return {
            "engine": "glmtts",
            "engine_settings": self.settings(**changes),
            "python": self.python,
            "cache_dir": str(self.cache),
            "patience_s": self.patience_s,
        }

    def upstream_says(self, folder: Path, jobs: list[dict[str, Any]], *, rate: int, use_phoneme: bool) -> list[Samples]:
        """Have upstream's own functions speak the jobs, in a process of their own; see reference.py."""
        files = [folder / f"{number}.f32" for number in range(len(jobs))]
        grammar = folder / "grammar"
        grammar.mkdir(exist_ok=True)
        for file in (self.folder / "tn_cache").glob("*.fst"):
            (grammar / file.name).write_bytes(file.read_bytes())
        given = {"rate": rate, "use_phoneme": use_phoneme, "grammar": str(grammar)}
        lines = [job | {"file": str(file)} for job, file in zip(jobs, files, strict=True)]
        (folder / "jobs.json").write_text(json.dumps(given | {"jobs": lines}))
        command = [self.python, str(_HERE / "reference.py"), str(self.folder), str(folder / "jobs.json")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=REFERENCE_DEADLINE_S)
        assert done.returncode == 0, done.stderr[-4_000:]
        return [np.fromfile(file, np.float32) for file in files]

    def run(self, script: str, *arguments: str) -> dict[str, Any]:
        """Run a script of this folder by the root's interpreter, with the root first; it prints a JSON object."""
        command = [self.python, str(_HERE / script), str(self.folder), str(self.cache), *arguments]
        # Of this interpreter's packages, this one alone.
        path = [str(Path(glmtts.daemon.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=REFERENCE_DEADLINE_S, env=environment
        )
        assert done.returncode == 0, done.stderr[-4_000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    @contextlib.contextmanager
    def upstream_reads(self, grammar: Path) -> Iterator[Ask]:
        """Have upstream's own text front end read texts, in a process of its own; see upstream_texts.py."""
        for file in (self.folder / "tn_cache").glob("*.fst"):
            shutil.copy(file, grammar)
        command = [self.python, str(_HERE / "upstream_texts.py"), str(grammar)]
        package = str(Path(glmtts.daemon.__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
        log = grammar / "log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            assert process.stdin
            assert process.stdout
            questions, answers = process.stdin, process.stdout

            def answer(text: str) -> dict[str, Any]:
                questions.write(json.dumps(text) + "\n")
                questions.flush()
                line = answers.readline()
                assert line, f"{text!r}: {log.read_text()[-4_000:]}"
                found: dict[str, Any] = json.loads(line)
                return found

            yield answer
            questions.close()


def interpreter() -> str:
    return os.environ.get("GLMTTS_PYTHON") or sys.executable


def recording(hz: float = 180.0, seconds: float = 2.0, rate: int = 24_000, level: float = 0.4) -> bytes:
    """A WAV file of a hum at that pitch, which is what the stand-in tells voices by."""
    time = np.arange(int(seconds * rate)) / rate
    hum = np.sin(2 * np.pi * hz * time) + 0.3 * np.sin(4 * np.pi * hz * time)
    samples = level * hum / 1.3 * (0.7 + 0.3 * np.sin(2 * np.pi * 3 * time))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def pitch(samples: Samples, rate: int) -> float:
    """The loudest frequency in Hz: of the stand-in's speech, that of the voice."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=8 * len(samples)))
    return float(spectrum.argmax()) * rate / (8 * len(samples))


def floats(audio: bytes) -> Samples:
    """What came as ``pcm_f32le``."""
    return np.frombuffer(audio, "<f4")


def asked(text: str, *, hz: float = 180.0, **job: Any) -> dict[str, Any]:
    """A job for a worker, spoken with the voice of a recording at that pitch."""
    given = {"text": text, "body": recording(hz), "prompt_text": PROMPT_TEXT, "format": "pcm_f32le"}
    return given | {"sample_rate": 24_000} | job
