"""One engine of GLM-TTS in a process of its own, for engine.py: speaks for a number of users at once.

``engine_speaker.py SETTINGS``: JSON with ``settings`` (of ``[engine.glmtts]``), ``slots``, ``gpu`` and ``cache``. Then
each line of stdin is ``{"users": ..., "max_tokens": ..., "seed": ...}``, and is answered by a line of JSON. Run by an
interpreter that has upstream's packages.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

#: A sentence each, of 8 to 11 words.
TEXTS = (
    "Turn up the phone volume a bit, please.",
    "The weather is nice today, is it not?",
    "He would rather walk home than wait for her.",
    "Few people know where the old road leads to.",
    "All of the windows were open that night.",
    "She put the letter back into the drawer.",
    "It rained so hard that the river rose.",
    "Every child in the village knew his name.",
    "Please send the invoice to my new address.",
    "We will meet again at the end of May.",
    "There is no train on Sunday evening now.",
    "I have read this book at least twice.",
    "Bring a coat, the wind is quite cold here.",
    "The cat sleeps on the warm kitchen floor.",
    "My brother plays the piano every morning.",
    "They built the bridge in only two years.",
)
_TOKENS_PER_S = 25


class Stages:
    """Adds up the time of each stage: on a GPU, that of launching it.

    On a CPU it is processor time, which other work on the machine does not move.
    """

    def __init__(self, *, gpu: bool) -> None:
        self.clock = time.perf_counter if gpu else time.process_time
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def note(self, stage: str, jobs: Collection[str] = ()) -> None:
        """A stage begins; "": none."""
        del jobs
        now = self.clock()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def within(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, noted as this stage."""

        def noted(*args: Any, **named: Any) -> Any:
            self.note(stage)
            try:
                return work(*args, **named)
            finally:
                self.note("")

        return noted


class Speaker:
    """Either engine, and how it is asked."""

    def __init__(self, given: dict[str, Any]) -> None:
        from glmtts.daemon.engines import load

        self.engine: Any = load(
            "glmtts",
            given["settings"],
            send_raw=lambda _: None,
            needs_gpu=given["gpu"],
            cache_dir=given["cache"],
            slots=given["slots"],
            # That segments are cut off is what was asked for.
            warn=lambda _: None,
        )
        self.reference = self.engine.warm_up_reference()
        self.stages = Stages(gpu=given["gpu"])
        self.batches = hasattr(self.engine, "advance")
        if self.batches:
            self.engine.record = self.stages.note
        else:
            self._watch(self.engine._upstream)

    def _watch(self, upstream: Any) -> None:
        upstream.llm.inference = self.stages.within("decode", upstream.llm.inference)
        upstream.flow.inference_with_cache = self.stages.within("flow", upstream.flow.inference_with_cache)
        for vocoder in upstream.vocoders.values():
            vocoder.vocoder = self.stages.within("vocoder", vocoder.vocoder)

    def speak(self, users: int, max_tokens: int, seed: int) -> dict[str, Any]:
        """All ask at the same time; returns when the last has heard all."""
        self.stages.seconds.clear()
        speak = self._together if self.batches else self._in_turn
        begun, before = time.perf_counter(), self.stages.clock()
        heard = speak([self._utterance(user, max_tokens, seed) for user in range(users)])
        took, worked = time.perf_counter() - begun, self.stages.clock() - before
        audio_s = sum(one["audio_s"] for one in heard)
        return {
            "seconds": took,
            "work_s": worked,
            "audio_s": audio_s,
            "tokens": round(audio_s * _TOKENS_PER_S),
            "first_audio_s": [one["first"] - begun for one in heard],
            "done_s": [one["done"] - begun for one in heard],
            "stages": dict(self.stages.seconds),
            "memory": memory(),
        }

    def _utterance(self, user: int, max_tokens: int, seed: int) -> Any:
        from glmtts.daemon.engines.base import Utterance

        text = TEXTS[user % len(TEXTS)]
        options = self.engine.options(max_tokens=max_tokens)
        return Utterance(text, None, self.reference, self.engine.sample_rates[0], seed + user, options, job=str(user))

    def _in_turn(self, utterances: list[Any]) -> list[dict[str, float]]:
        heard = []
        for utterance in utterances:
            one = {"first": 0.0, "audio_s": 0.0}
            for piece in self.engine.synthesize(utterance):
                _hear(one, piece, utterance)
            heard.append(one | {"done": time.perf_counter()})
        return heard

    def _together(self, utterances: list[Any]) -> list[dict[str, float]]:
        from glmtts.daemon.engines.base import Broken, Spoken

        handles = {id(self.engine.begin(one)): {"first": 0.0, "audio_s": 0.0} for one in utterances}
        left = len(handles)
        while left:
            wait_s = self.engine.idle_s()
            if wait_s != 0:
                select.select([self.engine.fileno()], [], [], wait_s)
            for event in self.engine.advance():
                if isinstance(event, Broken):
                    raise event.error
                if isinstance(event, Spoken):
                    _hear(handles[id(event.handle)], event.piece, event.handle.utterance)
                else:
                    handles[id(event.handle)]["done"] = time.perf_counter()
                    left -= 1
        return list(handles.values())


def _hear(one: dict[str, float], piece: Any, utterance: Any) -> None:
    if len(piece.samples):
        one["first"] = one["first"] or time.perf_counter()
        one["audio_s"] += len(piece.samples) / utterance.sample_rate


def memory() -> dict[str, int]:
    """The most that this process held, in bytes: in the host's memory, and of torch's on the GPU."""
    import torch

    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    highest = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"rss": highest, "gpu": on_gpu}


def main(given: dict[str, Any]) -> None:
    # Upstream prints.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    speaker = Speaker(given)
    # Hears the voice, and allocates what is allocated once.
    speaker.speak(1, 8, 0)
    print(json.dumps({"version": speaker.engine.version, "memory": memory()}), file=answers)
    for line in sys.stdin:
        print(json.dumps(speaker.speak(**json.loads(line))), file=answers)
    speaker.engine.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
