"""A client as unlucky, impatient and wrong as clients are: everything that it does, it does at random."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack

from .caller import Asked, Caller, Notes
from .speech import FAULTS, HARMLESS, Speech

_VOICES = ("tone", "tone-high", "tone-low")
_WHOLE = ("wav", "wav", "pcm_s16le", "pcm_f32le", "flac")
_STREAMED = ("pcm_s16le", "pcm_f32le")

#: Messages whose sender can't be named in the answer.
_UNREADABLE = (
    (b"\xc1",),
    (b"\x81",),
    (b"\xff" * 200,),
    (msgpack.packb([1, 2, 3]),),
    (b"GET / HTTP/1.1\r\n\r\n",),
    (msgpack.packb({1: 2}),),
    (b"\xc0", b"body"),
)


class Customer(threading.Thread):
    """Asks one thing after the other until ``until``; what must not be goes to ``notes``."""

    def __init__(
        self,
        endpoint: str,
        number: int,
        seed: str,
        notes: Notes,
        *,
        until: float,
        patience_s: float,
        vram_mib: int = 0,
    ) -> None:
        super().__init__(name=f"c{number}", daemon=True)
        self.random = random.Random(f"{seed}/{number}")
        self.notes = notes
        self.endpoint = endpoint
        self.until = until
        self.patience_s = patience_s
        #: What a job that uses or leaks memory of a GPU takes at most.
        self.vram_mib = vram_mib
        self.caller = Caller(endpoint, self.name, notes)
        self._texts = 0

    def run(self) -> None:
        habits = [
            self.one,
            self.several,
            self.impatient,
            self.vanish,
            self.come_back,
            self.nonsense,
            self.look,
            self.lazy,
        ]
        weights = [10, 6, 3, 2, 2, 2, 2, 1]
        try:
            while time.monotonic() < self.until:
                self.random.choices(habits, weights)[0]()
                self.listen(lambda: False, self.random.uniform(0.0, 0.2))
            # Whatever comes now comes too late.
            self.listen(lambda: False, 1.0)
        except Exception as error:
            self.notes.finding(f"{self.caller.name}: {type(error).__name__}: {error}")
        finally:
            self.caller.close()

    def listen(self, until: Callable[[], object], patience_s: float) -> bool:
        return self.caller.listen(until, patience_s)

    # --- what it wants

    def speech(self, fault: str | None = None, *, seconds: float | None = None, stream: bool | None = None) -> Speech:
        """Something to say, with a fault in one of four."""
        if fault is None:
            fault = self.random.choice(FAULTS) if self.random.random() < 0.25 else "audio"
        stream = self.random.random() < 0.4 if stream is None else stream
        options: dict[str, Any] = {
            "fault": fault,
            "seconds": self.random.uniform(0.2, 1.5) if seconds is None else seconds,
            "segments": self.random.randint(1, 4),
            "rtf": self.random.choice((0.0, 0.0, 0.1, 0.4)),
        }
        if fault == "sleep":
            options["seconds"] = self.random.uniform(0.0, 0.5)
        if fault != "audio":
            mib = self.vram_mib if fault.endswith(("_vram", "_outside")) else 20
            options |= {"mib": self.random.randint(1, mib or 20), "after_segments": self.random.choice((0, 0, 1, 2))}
        if fault not in HARMLESS and self.random.random() < 0.3:
            # Now and then all clients send the same poison; no other job shares its content.
            return Speech(f"the poison called {fault}", options={"fault": fault, "seconds": 0.3})
        self._texts += 1
        return Speech(
            f"{self.caller.name} says its sentence {self._texts}",
            voice=self.random.choice(_VOICES),
            seed=self.random.randint(0, 2**32 - 1),
            format=self.random.choice(_STREAMED if stream else _WHOLE),
            sample_rate=self.random.choice((24_000, 32_000)),
            stream=stream,
            options=options,
        )

    def speak(self, speech: Speech) -> Asked:
        keys: dict[str, Any] = {"priority": "batch"} if self.random.random() < 0.2 else {}
        if self.random.random() < 0.2:
            keys["events"] = "final"
        return self.caller.speak(speech, **keys)

    def ends(self, *requests: Asked) -> None:
        """Wait for the last event of each; it comes, or that is a finding."""
        if not self.listen(lambda: all(asked.last for asked in requests), self.patience_s):
            for asked in requests:
                if asked.last is None:
                    self.notes.finding(
                        f"{self.caller.name}: no answer within {self.patience_s:g} s: {asked.describe()}"
                    )
            self.reconnect()
            return
        if any(asked.last and asked.last.get("code") == "unavailable" for asked in requests):
            # As a polite client would: asking at once again would only count as more refusals.
            self.listen(lambda: False, self.random.uniform(0.5, 1.5))

    def reconnect(self) -> None:
        self.caller.close()
        self.caller = Caller(self.endpoint, self.name, self.notes)

    # --- what it does

    def one(self) -> None:
        """One thing after the other."""
        self.ends(self.speak(self.speech()))

    def several(self) -> None:
        """Several things at once on one connection."""
        self.ends(*[self.speak(self.speech()) for _ in range(self.random.randint(2, 4))])

    def impatient(self) -> None:
        """Think better of it."""
        asked = self.caller.speak(self.speech(self.random.choice(("audio", "sleep", "audio", "hang"))))
        event = self.random.choice(("accepted", "started", "audio"))
        self.listen(lambda: asked.last or event in asked.names, self.random.uniform(0.0, 1.0))
        if asked.job and not asked.last:
            asked.cancelled = True
            self.ends(self.caller.ask("cancel", job=asked.job))
        self.ends(asked)

    def vanish(self) -> None:
        """Leave in the middle of it."""
        asked = self.caller.speak(self.speech(stream=True))
        self.listen(lambda: asked.last or "audio" in asked.names, self.random.uniform(0.0, 0.5))
        self.notes.count("vanished")
        self.reconnect()

    def come_back(self) -> None:
        """Ask for something that can wait, leave, and come back for it."""
        speech = self.speech("audio", stream=False)
        asked = self.caller.speak(speech, priority="batch", durable=False)
        self.listen(lambda: asked.last or asked.job, self.patience_s)
        if not asked.job:
            return
        self.reconnect()
        waits = self.caller.ask("wait", job=asked.job, events="final")
        waits.final_only, waits.cancelled, waits.speech = True, True, speech
        self.ends(waits)

    def nonsense(self) -> None:
        """Send an invalid message."""
        for _ in range(self.random.randint(1, 5)):
            self.caller.send_nonsense(*self.random.choice(_UNREADABLE))
        asked = [
            self.caller.ask("dance"),
            self.caller.ask("synthesize"),
            self.caller.ask("synthesize", text="x", options={"fault": "love"}),
            self.caller.ask("synthesize", text="x" * 6_000),
            self.caller.ask("ping", v=2),
            self.caller.ask("wait", job="unknown"),
        ]
        self.ends(*asked)
        for one in asked:
            if one.last and one.last["event"] != "error":
                self.notes.finding(f"{self.caller.name}: nonsense was carried out: {one.describe()}: {one.last}")
        if not self.listen(lambda: not self.caller.anonymous, self.patience_s):
            self.notes.finding(f"{self.caller.name}: {self.caller.anonymous} unreadable messages have no answer")

    def look(self) -> None:
        """Ask what there is."""
        ops = ("ping", "info", "voices", "jobs")
        self.ends(*[self.caller.ask(op) for op in self.random.sample(ops, 2)])

    def lazy(self) -> None:
        """Not listen for a while, to a stream that is made faster than it sounds."""
        speech = self.speech("audio", seconds=self.random.uniform(5.0, 20.0), stream=True)
        asked = self.caller.speak(replace(speech, options=speech.options | {"rtf": 0.0}))
        time.sleep(self.random.uniform(0.0, 1.0))
        self.ends(asked)
