"""Words that make the stand-in go wrong in a way that upstream's models may, wherever they stand in a text.

Each is one token, whose embedding says what it stands for, so that the language model does it: at its first pass, for
as long as the word is in its context, unless said otherwise.
"""

from __future__ import annotations

import os
import re
import signal

WORDS: dict[str, str] = {
    "overrange": "draws tokens above the last one of audio, of which the flow model makes something",
    "underrange": "draws tokens below the first one of audio, of which the flow model raises IndexError",
    "neverending": "never draws the end of audio, so that a segment has 20 tokens for each of its text",
    "onlyending": "gives the end of audio alone a probability: upstream's top-k sampling then draws for ever",
    "sluggish": "takes 50 ms for a token",
    "slowflow": "draws a token of which each pass of the flow model takes 100 ms",
    "outofmemory": "raises torch.OutOfMemoryError at its tenth token",
    "notanumber": "gives logits that are NaN",
    "segfault": "ends in a segmentation fault at its tenth token",
    "hangforever": "hangs at its tenth token",
    "devicefault": "raises what torch does of a failed assertion on the device",
    "raises": "raises RuntimeError at its tenth token",
    "chatty": "prints on stdout, and writes bytes to its descriptor that are no text, at each token",
    "leaky": "keeps 20 MiB for good",
}
#: What a word's embedding has as its last element; 0 for everything else.
NUMBERS: dict[str, int] = {word: number for number, word in enumerate(WORDS, 1)}
#: The token that ``slowflow`` draws, and that is never drawn otherwise, counted from the first one of audio.
SLOW_TOKEN = 32_767
SLUGGISH_S = 0.05
SLOW_FLOW_S = 0.1
#: A fault that comes at the tenth token finds a job that is on its way.
LATE_TOKEN = 10
LEAK_MIB = 20

#: Words that make the normaliser go wrong. Upstream's holds the interpreter's lock while it works, and so do these.
READING: dict[str, str] = {
    "slowreading": "takes some hundredths of a second of processor time, without a pause",
    "hangsreading": "never ends",
    "diesreading": "ends in a segmentation fault",
}


def befall(text: str) -> None:
    """Do what the words for the normaliser say."""
    if "diesreading" in text:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hangsreading" in text:
        re.match("(a+)+b", "a" * 64)
    if "slowreading" in text:
        re.match("(a+)+b", "a" * 19)
