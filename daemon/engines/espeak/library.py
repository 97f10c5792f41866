"""The eSpeak NG library: one instance speaks one text at a time, in a thread of its own.

The library keeps its state in static variables, so two texts at a time need two instances, and the dynamic linker makes
a second instance only from a second file: a copy in memory (memfd_create(2)).
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import errno
import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..base import EngineError
from ..options import EspeakOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE_RATE = 22_050

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_UTF8 = 1
#: The length of a chunk.
_CHUNK_MS = 40
#: Most chunks in the queue; the library is a thousand times faster than speech.
_CHUNKS_AHEAD = 256
#: MFD_NOEXEC_SEAL (Linux 6.3): the copy can't be executed as a program; hardened kernels require it.
_NOT_A_PROGRAM = 0x8


class _LibraryVoice(ctypes.Structure):
    """``espeak_VOICE``; the first byte of ``languages`` is a priority."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class ListedVoice(NamedTuple):
    """A voice of the library: its language tag, and the identifier by which the library selects it."""

    name: str
    language: str
    identifier: str


class Passage(NamedTuple):
    """A text for one voice."""

    voice: str
    text: str


class EspeakLibrary:
    """An instance of the library. Use it from one thread; it owns a second thread, which speaks.

    The library keeps state between texts (such as the voice's flutter) that neither a seed nor its own initialisation
    resets. So it is loaded anew for each text: about 6 ms, spent by the speaking thread after the previous text.
    """

    def __init__(self, path: str, data: str, *, copy: bool = False) -> None:
        """Load ``path`` itself, once per process, or a copy of it. Raises OSError or RuntimeError."""
        self.is_copy = copy
        self._data = data
        # Keep it open: the linker identifies the copy by this path, and a closed number would be reused.
        self._fd = _copy_to_memory(path) if copy else -1
        self._path = f"/proc/self/fd/{self._fd}" if copy else path
        # The library calls it from the speaking thread; it must outlive every call.
        self._callback = _Callback(self._take)
        self._chunks: queue.Queue[NDArray[np.float32] | Exception | None] = queue.Queue()
        self._passages: queue.SimpleQueue[Passage | None] = queue.SimpleQueue()
        self._stopping = False
        self._closing = False
        self._speaker: threading.Thread | None = None
        self._problem = ""
        try:
            self._library = self._load()
        except BaseException:
            self._forget_copy()
            raise

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`start` would not wait for the library to be loaded anew."""
        return self._speaker is None or not self._speaker.is_alive()

    def version(self) -> str:
        self._library.espeak_Info.restype = ctypes.c_char_p
        return str(self._library.espeak_Info(None).decode().split()[0])

    def voices(self) -> list[ListedVoice]:
        """All voices, in the library's own order."""
        voices: list[ListedVoice] = []
        listed = self._library.espeak_ListVoices(None)
        while entry := listed[len(voices)]:
            voice = entry.contents
            language = voice.languages[1:].decode().lower()
            voices.append(ListedVoice(voice.name.decode().strip(), language, voice.identifier.decode()))
        return voices

    def start(self, options: EspeakOptions) -> None:
        """Begin a text, passage by passage (:meth:`say`). Raises EngineError if the library can't be loaded again."""
        # One thread at a time may be in the library: wait for the previous text's.
        self.join()
        if self._problem:
            raise EngineError("synthesis_failed", f"eSpeak NG can't be loaded again: {self._problem}", fatal=True)
        self._stopping = False
        self._chunks = queue.Queue(_CHUNKS_AHEAD)
        self._passages = queue.SimpleQueue()
        self._speaker = threading.Thread(target=self._speak, args=(options,), name="espeak", daemon=True)
        self._speaker.start()

    def say(self, passage: Passage) -> None:
        """Speak a passage after those before it; :meth:`chunk` returns the audio."""
        self._passages.put(passage)

    def chunk(self) -> NDArray[np.float32] | None:
        """Wait for the next chunk, of shape (n,); None at the end of each passage. Raises EngineError."""
        chunk = self._chunks.get()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def stop(self) -> None:
        """Stop speaking; the library then gets ready for the next text by itself."""
        self._stopping = True
        self._passages.put(None)
        # The thread may wait for room in the queue; it checks _stopping after each chunk.
        with contextlib.suppress(queue.Empty):
            while True:
                self._chunks.get_nowait()

    def join(self) -> None:
        """Wait for the speaking thread to end."""
        if self._speaker is not None:
            self._speaker.join()
            self._speaker = None

    def close(self) -> None:
        """Unload the library for good."""
        self._closing = True
        self.stop()
        self.join()
        if self._library is not None:
            self._unload()
        self._forget_copy()
        # A reference cycle.
        del self._callback

    def _speak(self, options: EspeakOptions) -> None:
        """The speaking thread: queue the chunks of each passage and None, then load the library anew."""
        try:
            while (said := self._passages.get()) is not None and not self._stopping:
                voice, passage = said
                self._library.espeak_SetVoiceByName(voice.encode())
                self._library.espeak_SetParameter(_RATE, options.rate, 0)
                self._library.espeak_SetParameter(_PITCH, options.pitch, 0)
                # Plain text, without SSML and phonemes in brackets.
                text = passage.replace("\0", " ").encode(errors="replace")
                size = ctypes.c_size_t(len(text) + 1)
                if status := self._library.espeak_Synth(text, size, 0, 0, 0, _UTF8, None, None):
                    raise EngineError("synthesis_failed", f"eSpeak NG failed with status {status}")
                if self._stopping:
                    break
                self._chunks.put(None)
        except Exception as error:
            self._chunks.put(error)
        self._unload()
        if not self._closing:
            try:
                self._library = self._load()
            except (OSError, RuntimeError) as error:
                self._problem = str(error)

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        """The library's callback, in the speaking thread. Returns 1 to stop."""
        if self._stopping:
            return 1
        if samples and count > 0:
            pcm = np.frombuffer(ctypes.string_at(samples, count * 2), np.int16)
            self._chunks.put(pcm.astype(np.float32) / 32_768.0)
        return 0

    def _load(self) -> Any:
        library = ctypes.CDLL(self._path)
        rate = library.espeak_Initialize(_SYNCHRONOUS, _CHUNK_MS, self._data.encode(), _DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"eSpeak NG could not be started with its data in {self._data} (status {rate})")
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_LibraryVoice))
        # Read the index of voices now, or the first text would wait for it.
        library.espeak_ListVoices(None)
        return library

    def _unload(self) -> None:
        """Unload the library with its state."""
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)
        self._library = None

    def _forget_copy(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _copy_to_memory(path: str) -> int:
    """The descriptor of a copy of ``path`` in memory. Raises OSError."""
    name = Path(path).name
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | _NOT_A_PROGRAM)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # An older kernel without that flag.
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as copy:
            copy.write(Path(path).read_bytes())
    except BaseException:
        os.close(fd)
        raise
    return fd
