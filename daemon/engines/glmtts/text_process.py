"""The processes that run upstream's text front end, so that its seconds under the GIL stop no other job.

One of them, the template, imports upstream, loads the grammar and the tokenizer, and works on no text. The text
processes are its forks: one starts in milliseconds and shares the template's memory. A process gets one task at a time.

Nothing here needs torch, CUDA or ONNX: upstream's module imports them for recordings, and finds empty modules. Where a
version of upstream does need them, the template starts again with them, which takes more time and memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.machinery
import json
import logging
import os
import signal
import socket
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from glmtts.protocol import inherited

from ... import malloc
from ..base import EngineError
from . import pronunciation
from .checkpoint import PHONEMES
from .grammar_cache import SharedGrammar
from .text import Texts
from .text_tasks import Frames, Hello, Message, NotLoaded, Prepare, Prepared, Read, Refused, Result, Split, Task, frame
from .upstream import Prints, prepare_process

_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16

#: What upstream's module imports for recordings alone.
_NOT_FOR_TEXTS = ("torch", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi", "onnxruntime")


class TextWork:
    """Upstream's text front end and tokenizer, with the user's dictionary."""

    def __init__(self, root: Path, cache_dir: Path, dictionary: str) -> None:
        """Load all that a text needs, from ``root``, the working directory. Takes seconds.

        Raises ValueError and OSError for the dictionary, and any other exception for upstream.
        """
        frontend: Any = importlib.import_module("cosyvoice.cli.frontend")
        transformers: Any = importlib.import_module("transformers")
        grammar = SharedGrammar(cache_dir)
        if hasattr(frontend, "ZhNormalizer"):
            frontend.ZhNormalizer = grammar.shared(frontend.ZhNormalizer)
        # Both write files that all workers share.
        with grammar.lock():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                os.path.join("ckpt", "vq32k-phoneme-tokenizer"),  # noqa: PTH118 - as upstream names it
                trust_remote_code=True,
            )
            self._front_end = frontend.TextFrontEnd(use_phoneme=True)
        self._encode: Callable[[str], list[int]] = tokenizer.encode
        self._texts = Texts(self._front_end)
        self._dictionary = pronunciation.Dictionary(self._readings(root, dictionary))
        # Upstream loads more with the first texts, such as dictionaries of syllables and words.
        for text in ("a long word and two.", "一个。"):
            for segment in self._texts.segments(self._texts.read(text)):
                self._prepared(segment, use_phoneme=True)

    def do(self, task: Task) -> Message:
        """The result of a task; an EngineError becomes Refused."""
        try:
            match task:
                case Read():
                    return Result(self._texts.read(task.text))
                case Split():
                    return Result(self._texts.segments(task.normalised))
                case Prepare():
                    return self._prepared(task.segment, use_phoneme=task.use_phoneme)
        except EngineError as error:
            return Refused(error.code, error.message, error.quotes)

    def _prepared(self, segment: str, *, use_phoneme: bool) -> Prepared:
        normalised = self._texts.normalise_segment(segment)
        spoken = self._dictionary.apply(normalised, self._front_end.g2p_infer if use_phoneme else str)
        return Prepared(segment, normalised, spoken, self._encode(spoken))

    def _readings(self, root: Path, dictionary: str) -> dict[str, str]:
        if not dictionary:
            return {}
        known = json.loads((root / PHONEMES).read_bytes()).values()
        return pronunciation.load(Path(dictionary), lambda text: len(self._encode(text)) == 1, list(known))


def command(control: socket.socket, root: Path, cache_dir: Path, dictionary: str) -> list[str]:
    """The command line of a template, which inherits ``control``."""
    import glmtts

    # [engine] python may have no package of this name; then it has the worker's.
    start = (
        "import sys, types; glmtts = types.ModuleType('glmtts'); glmtts.__path__ = sys.argv.pop(1).split(':'); "
        f"sys.modules['glmtts'] = glmtts; from {__name__} import main; main()"
    )
    given = [control.fileno(), os.getpid(), root, cache_dir, dictionary, ""]
    return [sys.executable, "-c", start, ":".join(glmtts.__path__), *map(str, given)]


def main() -> NoReturn:
    """The template: loads, says Hello or NotLoaded, and then forks a text process for each descriptor that it gets."""
    fd, worker, root, cache_dir, dictionary, with_models = sys.argv[1:]
    inherited.put_right()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(int(worker))
    control = socket.socket(fileno=int(fd))
    # The worker writes to the same pipe: a line at a time, so that neither breaks the other's.
    # Typed as any text stream, of which not each can be reconfigured.
    sys.stderr.reconfigure(line_buffering=True, write_through=False, errors="backslashreplace")  # type: ignore[union-attr]
    prints = Prints()
    # Upstream prints texts, later too.
    sys.stdout = prints
    # A context of CUDA would take GPU memory.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not with_models:
        _leave_out(_NOT_FOR_TEXTS)
    prepare_process(Path(root), Path(cache_dir))
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work = TextWork(Path(root), Path(cache_dir), dictionary)
    except Exception as error:
        traceback.print_exc()
        prints.show()
        setting = bool(dictionary) and isinstance(error, ValueError | OSError) and dictionary in str(error)
        if not (setting or with_models):
            print("the text front end can't be loaded like this; it is loaded once more, with torch", file=sys.stderr)
            os.environ.pop("USE_TORCH")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-1], "with torch"])
        words = str(error) if setting else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            control.sendall(frame(NotLoaded(words, setting)))
        os._exit(1)
    prints.lines.clear()
    # Objects that are never collected are never written to, so that forks share them.
    gc.collect()
    gc.freeze()
    malloc.trim()
    # The kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # An error means that the worker has ended; its last line in the log stays the last.
    with contextlib.suppress(ConnectionError):
        own = os.getpid()
        control.sendall(frame(Hello(own)))
        while fds := socket.recv_fds(control, 1, 1)[1]:
            if not os.fork():
                control.close()
                _end_with(own)
                _serve(socket.socket(fileno=fds[0]), work)
            os.close(fds[0])
    os._exit(0)


def _serve(channel: socket.socket, work: TextWork) -> NoReturn:
    """A text process: does one task after the other, until its channel is closed."""
    with contextlib.suppress(OSError):
        channel.sendall(frame(Hello(os.getpid())))
        frames = Frames()
        while chunk := channel.recv(_READ_BYTES):
            for task in frames.feed(chunk):
                try:
                    result = work.do(task)
                except Exception as error:
                    # Its message may quote the text: it goes to the client, and to the log at debug level.
                    traceback.print_exc()
                    words = f"text: GLM-TTS's text front end fails: {type(error).__name__}: {error}"
                    result = Refused("synthesis_failed", words, True)
                channel.sendall(frame(result))
    os._exit(0)


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent, or the parent's thread that started it, has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


class _Absent(types.ModuleType):
    """A module whose every name is a class that does nothing, for annotations."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": functools.partialmethod(_absent, f"{self.__name__}.{name}")})


def _absent(_: Any, name: str, *args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    raise RuntimeError(f"{name} is used for a text; this version of GLM-TTS is not known to need it")


def _leave_out(names: tuple[str, ...]) -> None:
    # transformers looks for it otherwise.
    os.environ["USE_TORCH"] = "0"
    for name in names:
        module = _Absent(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
