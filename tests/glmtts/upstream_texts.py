"""What upstream's own text front end makes of texts, and what comes of them with ours before it.

Run by the interpreter of a root, in the root: ``upstream_texts.py GRAMMAR``, a folder with a compiled grammar, or for
one. Each line of standard input is a text as JSON; each line of the answer an object as :func:`_answer` has it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtts.daemon.engines.base import EngineError
from glmtts.daemon.engines.glmtts.pronunciation import Dictionary
from glmtts.daemon.engines.glmtts.text import Texts, check_speakable, normalising


def main(grammar: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(Path.cwd()))
    from cosyvoice.cli import frontend

    normalizer = frontend.ZhNormalizer
    frontend.ZhNormalizer = lambda **options: normalizer(
        **options | {"cache_dir": grammar, "overwrite_cache": not any(Path(grammar).iterdir())}
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("ckpt/vq32k-phoneme-tokenizer", trust_remote_code=True)
    front_end = frontend.TextFrontEnd(use_phoneme=True)
    texts = Texts(front_end)
    texts.segments(texts.read("a long word and two."))
    texts.read("一个。")
    for line in sys.stdin:
        print(json.dumps(_answer(front_end, texts, tokenizer.encode, json.loads(line))), file=answers, flush=True)


def _answer(front_end: Any, texts: Texts, encode: Callable[[str], list[int]], text: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"raised": "", "refused": ""}
    try:
        answer["whole"] = front_end.text_normalize(text)
        answer["whole_segments"] = front_end.split_by_len(answer["whole"])
    except Exception as error:
        answer["raised"] = type(error).__name__
    beats = [time.thread_time()]
    try:
        check_speakable(text)
        answer["ours"] = _normalised(texts, text, beats)
    except EngineError as error:
        return answer | {"refused": f"{error.code}: {error.message}"}
    answer["segments"] = texts.segments(answer["ours"])
    answer["longest_s"] = max(after - before for before, after in itertools.pairwise(beats))
    # As it is spoken: upstream normalises each segment again, and raises here if it does.
    answer["spoken"] = [front_end.text_normalize(segment) for segment in answer["segments"]]
    answer["spoken_by_ours"] = [texts.normalise_segment(segment) for segment in answer["segments"]]
    answer["tokens"] = [encode(said) for said in answer["spoken"]]
    answer["tokens_with_phonemes"] = [encode(front_end.g2p_infer(said)) for said in answer["spoken"]]
    answer["phonemes"] = front_end.g2p_infer(answer["ours"])
    pieces = Dictionary(front_end.replace_dict).fragments(answer["ours"])
    answer["phonemes_by_ours"] = "".join(said if final else front_end.g2p_infer(said) for said, final in pieces)
    return answer


def _normalised(texts: Texts, text: str, ends: list[float]) -> str:
    """What a text process reads task by task; ``ends`` gets the end of each, in seconds of processor time."""
    reading = normalising(text)
    source = next(reading)
    while True:
        result = texts.read(source)
        ends.append(time.thread_time())
        try:
            source = reading.send(result)
        except StopIteration as end:
            return str(end.value)


if __name__ == "__main__":
    main(sys.argv[1])
