"""eSpeak NG: speech in a few milliseconds, without a GPU or a system package, in Mandarin or English."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from glmtts.protocol.events import Voice

from ..base import Engine, EngineError, Piece, Utterance, texts_of
from ..options import EspeakOptions
from ..sentences import Sentence, Splitter
from .library import SAMPLE_RATE, EspeakLibrary, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AUTO = "auto"
_MANDARIN = "cmn"
_ENGLISH = "en-us"
#: Digits that the library speaks in the voices of their own script alone, and numbers in circles or brackets, or with a
#: full stop, which it never speaks.
_NUMBER = re.compile("(?![0-9])\\d|[①-⒛⓪-⓿❶-➓㉑-㉟㊱-㊿]")
#: Idle instances of the library that are kept: one, and a second for a job that begins while another is suspended.
_KEPT = 2


class EspeakEngine(Engine):
    """Its segments are sentences. The seed has no effect: equal texts make equal audio.

    Owns instances of the library; each running or suspended job has one to itself.
    """

    name = "espeak"
    sample_rates = (SAMPLE_RATE,)
    options = EspeakOptions
    repeats = True

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the espeak engine needs the package espeakng-loader: pip install espeakng-loader"
            ) from error
        self._path: str = espeakng_loader.get_library_path()
        self._data: str = espeakng_loader.get_data_path()
        library = EspeakLibrary(self._path, self._data)
        self.version = library.version()
        self._names = _named(library)
        self._idle = [library]

    @property
    def voices(self) -> list[Voice]:
        automatic = Voice(name=_AUTO, language="zh,en", description="Mandarin or English, as each sentence is written")
        return [automatic, *(voice for voice, _ in self._names.values())]

    def synthesize(self, utterance: Utterance) -> Iterator[Piece]:
        splitter = Splitter()
        segment = segments = 0
        library = self._take_library()
        try:
            library.start(utterance.options)
            for text in texts_of(utterance):
                if isinstance(text, Piece):
                    yield text
                    continue
                sentences = splitter.add(text)
                segments += len(sentences)
                for sentence in sentences:
                    voice = self._voice_for(sentence, utterance.voice)
                    library.say(Passage(voice, _NUMBER.sub(_plain, sentence.text)))
                while segment < segments:
                    # Hold back one piece: only the next one shows whether it was the last of its sentence.
                    held: NDArray[np.float32] | None = None
                    while (chunk := library.chunk()) is not None:
                        utterance.beat(segment, segments)
                        if utterance.cancelled():
                            return
                        if held is not None:
                            yield Piece(held, segment, segments, False)
                        held = chunk
                    yield Piece(np.zeros(0, np.float32) if held is None else held, segment, segments, True)
                    segment += 1
        finally:
            library.stop()
            self._put_back(library)

    def close(self) -> None:
        for library in self._idle:
            library.join()

    def _voice_for(self, sentence: Sentence, voice: str | None) -> str:
        name = voice if voice not in (None, _AUTO) else _MANDARIN if sentence.has_han else _ENGLISH
        return self._names[str(name)][1]

    def _take_library(self) -> EspeakLibrary:
        if self._idle:
            library = next((library for library in self._idle if library.is_ready), self._idle[0])
            self._idle.remove(library)
            return library
        try:
            return EspeakLibrary(self._path, self._data, copy=True)
        except (OSError, RuntimeError) as error:
            raise EngineError(
                "synthesis_failed", f"eSpeak NG can't be loaded for a job beside a suspended one: {error}"
            ) from error

    def _put_back(self, library: EspeakLibrary) -> None:
        self._idle.append(library)
        if len(self._idle) > _KEPT:
            # The original shares its code with the other workers; drop a copy.
            surplus = next(library for library in self._idle if library.is_copy)
            self._idle.remove(surplus)
            surplus.close()


def _plain(number: re.Match[str]) -> str:
    value = str(int(unicodedata.numeric(number[0])))
    return value if number[0].isdecimal() else f" {value} "


def _named(library: EspeakLibrary) -> dict[str, tuple[Voice, str]]:
    """The library's voices by name: the language tag, or the last part of the voice's path where that is taken."""
    names: dict[str, tuple[Voice, str]] = {}
    for voice in library.voices():
        tag = voice.language
        name = tag if tag not in names else voice.identifier.rpartition("/")[2].lower()
        description = f"eSpeak NG: {voice.name}"
        names[name] = (
            Voice(name=name, language=tag, description=description),
            tag if name == tag else voice.identifier,
        )
    return names
