"""eSpeak NG: real speech in a few milliseconds, without a GPU or a system package; Mandarin and English by the text."""

from __future__ import annotations

import _ctypes
import ctypes
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from glmtts.protocol.events import Voice

from .base import Engine, EngineError, Piece, Utterance
from .options import EspeakOptions
from .sentences import Sentence, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_UTF8 = 1
#: How much of the speech the library hands over at a time.
_CHUNK_MS = 40
#: The library is a thousand times faster than speech; this many chunks it may be ahead of who takes them.
_CHUNKS_AHEAD = 256

_AUTO = "auto"
_MANDARIN = "cmn"
_ENGLISH = "en-us"


class _LibraryVoice(ctypes.Structure):
    """``espeak_VOICE``; ``languages`` begins with a byte that is a priority."""

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


class EspeakEngine(Engine):
    """Sentences are its segments. The seed is without effect: the same text always sounds the same.

    The library keeps state in static variables from one utterance to the next (the flutter of the voice among it),
    which neither a seed nor its own initialisation resets. So each job gets the library freshly loaded: about 6 ms,
    spent after the job before it, by the thread that spoke.
    """

    name = "espeak"
    sample_rates = (22_050,)
    options = EspeakOptions

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the espeak engine needs the package espeakng-loader; pip install 'glmtts-supervisor[espeak]'"
            ) from error
        self._path: str = espeakng_loader.get_library_path()
        self._data: str = espeakng_loader.get_data_path()
        # The library calls it from the speaking thread; it has to outlive every call.
        self._callback = _Callback(self._take)
        self._library = self._fresh_library()
        self._chunks: queue.Queue[NDArray[np.float32] | Exception | None] = queue.Queue()
        self._stopping = False
        self._speaker: threading.Thread | None = None
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version = self._library.espeak_Info(None).decode().split()[0]
        self._names = self._list_voices()

    @property
    def voices(self) -> list[Voice]:
        automatic = Voice(name=_AUTO, language="zh,en", description="Mandarin or English, as each sentence is written")
        return [automatic, *(voice for voice, _ in self._names.values())]

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        sentences = split(utterance.text)
        # Only one thread may be in the library: wait until the one of the last job has made it ready again.
        self._join()
        self._stopping = False
        self._chunks = queue.Queue(_CHUNKS_AHEAD)
        self._speaker = threading.Thread(
            target=self._speak, args=(sentences, utterance.voice or _AUTO, utterance.options), daemon=True
        )
        self._speaker.start()
        spoke = False
        try:
            for segment in range(len(sentences)):
                # One piece is held back, because only the next one tells whether it was the sentence's last.
                held: NDArray[np.float32] | None = None
                while (chunk := self._chunks.get()) is not None:
                    if isinstance(chunk, Exception):
                        raise chunk
                    utterance.beat(segment, len(sentences))
                    if utterance.cancelled():
                        return
                    if held is not None:
                        yield Piece(held, segment, len(sentences), False)
                    held = chunk
                spoke = spoke or held is not None
                yield Piece(np.zeros(0, np.float32) if held is None else held, segment, len(sentences), True)
            if not spoke:
                raise EngineError("synthesis_failed", "eSpeak NG has no sound for anything in this text")
        finally:
            self._stop_speaking()

    def close(self) -> None:
        self._stop_speaking()
        self._join()

    def _speak(self, sentences: list[Sentence], voice: str, options: EspeakOptions) -> None:
        """The speaking thread: every sentence's chunks, then None; then a library that is ready for the next job."""
        try:
            for sentence in sentences:
                name = voice if voice != _AUTO else _MANDARIN if sentence.has_han else _ENGLISH
                self._library.espeak_SetVoiceByName(self._names[name][1].encode())
                self._library.espeak_SetParameter(_RATE, options.rate, 0)
                self._library.espeak_SetParameter(_PITCH, options.pitch, 0)
                # Plain text: neither SSML nor phonemes in brackets are interpreted.
                text = sentence.text.replace("\0", " ").encode(errors="replace")
                size = ctypes.c_size_t(len(text) + 1)
                if status := self._library.espeak_Synth(text, size, 0, 0, 0, _UTF8, None, None):
                    raise EngineError("synthesis_failed", f"eSpeak NG failed with status {status}")
                if self._stopping:
                    break
                self._chunks.put(None)
        except Exception as error:
            self._chunks.put(error)
        self._load_afresh()

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        """The library's callback, in the speaking thread. 1 tells it to stop."""
        if self._stopping:
            return 1
        if samples and count > 0:
            pcm = np.frombuffer(ctypes.string_at(samples, count * 2), np.int16)
            self._chunks.put(pcm.astype(np.float32) / 32_768.0)
        return 0

    def _stop_speaking(self) -> None:
        self._stopping = True
        # Make room, in case the thread waits for it: it looks at _stopping after each chunk.
        while True:
            try:
                self._chunks.get_nowait()
            except queue.Empty:
                return

    def _join(self) -> None:
        if self._speaker is not None:
            self._speaker.join()
            self._speaker = None

    def _load_afresh(self) -> None:
        """Unload the library with all that it remembers, and load it again."""
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)
        self._library = self._fresh_library()

    def _fresh_library(self) -> Any:
        library = ctypes.CDLL(self._path)
        rate = library.espeak_Initialize(_SYNCHRONOUS, _CHUNK_MS, self._data.encode(), _DONT_EXIT)
        if rate != self.sample_rates[0]:
            raise RuntimeError(f"eSpeak NG could not be started with its data in {self._data} (status {rate})")
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_LibraryVoice))
        # Reads the index of voices, for which the first job would wait otherwise.
        library.espeak_ListVoices(None)
        return library

    def _list_voices(self) -> dict[str, tuple[Voice, str]]:
        """The library's voices by our name: the language tag, with the rest of its path where that is not unique."""
        names: dict[str, tuple[Voice, str]] = {}
        listed = self._library.espeak_ListVoices(None)
        index = 0
        while entry := listed[index]:
            index += 1
            voice = entry.contents
            identifier = voice.identifier.decode()
            tag = voice.languages[1:].decode().lower()
            name = tag if tag not in names else identifier.rpartition("/")[2].lower()
            description = f"eSpeak NG: {voice.name.decode().strip()}"
            names[name] = (Voice(name=name, language=tag, description=description), tag if name == tag else identifier)
        return names
