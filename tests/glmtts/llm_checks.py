"""Checks of the batched language model against upstream's own, in one process with both.

Run by the interpreter of a root: ``llm_checks.py ROOT CACHE CHECK [SIZE]``, which prints a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from glmtts.daemon.engines.base import EngineError
from glmtts.daemon.engines.glmtts import llama, llm_batch, sampling
from glmtts.daemon.engines.glmtts.llama import Llama
from glmtts.daemon.engines.glmtts.llm_batch import BatchedLlm, Reading
from glmtts.daemon.engines.glmtts.sampling import Audio, Draws
from glmtts.daemon.engines.glmtts.token_watch import Watch
from glmtts.daemon.engines.glmtts.upstream import Upstream

TEXTS = [
    "Turn up the phone volume a bit, please.",
    "今天天气不错，我们去公园散步吧。",
    "He would rather walk home than wait for her.",
    "周末大家去郊外爬山。",
    "All of the windows were open that night.",
    "She put the letter back into the drawer.",
    "如果您有时间，欢迎您来参观。",
    "Every child in the village knew his name.",
    "Please send the invoice to my new address.",
    "我们每天早上九点开会。",
    "There is no train on Sunday evening now.",
    "I have read this book at least twice.",
    "下午有时候一起喝咖啡，说说笑笑。",
    "The cat sleeps on the warm kitchen floor.",
    "My brother plays the piano every morning.",
    "They built the bridge in only two years.",
]
#: What counts as equal, and what as a tie of two candidates.
CLOSE = 1e-3
#: Of a prompt's recording, in tokens: the longest is taken in by three parts.
PROMPTS = [40, 250, 330, 7, 520]


class Rig:
    """Upstream's model, and readings of it."""

    def __init__(self, root: str, cache: str, half: bool = False) -> None:
        self.upstream = Upstream(Path(root), rates=(24_000,), half_llm=half, cache_dir=Path(cache))
        self.llm = self.upstream.llm

    def parts(self, text: int, prompt: int) -> tuple[Any, Any, Any]:
        """Tokens of a transcript, of a text and of a recording, of shape (1, t)."""
        draw = random.Random(prompt)
        codes = [draw.randrange(32_000) for _ in range(PROMPTS[prompt % len(PROMPTS)])]
        said = self.upstream.text_tokens("I wonder if you would like it. ")
        return said, self.upstream.text_tokens(TEXTS[text % 16]), torch.tensor([codes], dtype=torch.int32)

    def reading(self, number: int, seed: int, *, most: int, method: str = "ras", top_k: int = 25) -> Reading:
        said, text, codes = self.parts(number, number)
        ids = [*said[0].tolist(), *text[0].tolist(), self.llm.boa, *(codes[0] + self.llm.ats).tolist()]
        generator = torch.Generator().manual_seed(seed)
        draws = Draws(method, top_k, generator, 2 * text.shape[1])
        return Reading(f"{number}/{seed}", ids, draws, most)

    def upstream_draws(self, number: int, seed: int, *, most: int, method: str = "ras", top_k: int = 25) -> Any:
        """Upstream's own tokens, and the scores that it drew each from."""
        said, text, codes = self.parts(number, number)
        seen: list[torch.Tensor] = []
        ras, topk = self.llm.sampling_ids_ras, self.llm.sampling_ids

        def of_ras(scores: torch.Tensor, *rest: Any) -> Any:
            seen.append(scores.clone())
            return ras(scores, *rest)

        def of_topk(scores: torch.Tensor, *rest: Any, **more: Any) -> Any:
            seen.append(scores.clone())
            return topk(scores, *rest, **more)

        self.llm.sampling_ids_ras, self.llm.sampling_ids = of_ras, of_topk
        torch.manual_seed(seed)

        def length(tokens: torch.Tensor) -> torch.Tensor:
            return torch.tensor([tokens.shape[1]], dtype=torch.int32)

        tokens = self.llm.inference(
            text=text,
            text_len=length(text),
            prompt_text=said,
            prompt_text_len=length(said),
            prompt_speech_token=codes,
            prompt_speech_token_len=length(codes),
            sampling=top_k,
            max_token_text_ratio=(most + 0.5) / text.shape[1],
            sample_method=method,
            spk=None,
        )[0]
        self.llm.sampling_ids_ras, self.llm.sampling_ids = ras, topk
        return (tokens + self.llm.ats).tolist(), seen

    def batch(self, rows: int) -> Recorded:
        return Recorded(self.llm, rows)


class Recorded(BatchedLlm):
    """Keeps what each reading's tokens were drawn from: a digest of the logits, and the likeliest."""

    def __init__(self, llm: Any, rows: int) -> None:
        super().__init__(llm, rows=rows, parked=2, warn=print)
        self.digests: dict[str, list[str]] = {}
        self.likeliest: dict[str, list[tuple[Any, Any]]] = {}

    def _draw(self, logits: Any, readings: list[Reading]) -> None:
        for row, reading in zip(logits, readings, strict=True):
            self.digests.setdefault(reading.job, []).append(hashlib.sha256(row.numpy().tobytes()).hexdigest())
            self.likeliest.setdefault(reading.job, []).append(row.log_softmax(-1).topk(40))
        super()._draw(logits, readings)


def run(batch: BatchedLlm, readings: list[Reading], turn: Callable[[], None] = lambda: None) -> None:
    """All of them, as they find room; one part of a prompt after each step."""
    waiting = list(readings)
    while any(not one.ended and one.error is None for one in readings):
        turn()
        while waiting and batch.has_room:
            batch.join(waiting.pop(0))
        batch.step()
        if (joining := batch.joining) is not None:
            batch.take_in(joining)


def same_as_upstream(rig: Rig, size: str = "4") -> dict[str, Any]:
    """Tokens of upstream, for so many seeds of each text; where two part, two candidates were equally likely."""
    seeds, most, ties = int(size), 50, []
    ways: list[dict[str, Any]] = [
        {"method": "ras"},
        {"method": "ras"},
        {"method": "topk"},
        {"method": "topk", "top_k": 5},
    ]
    wanted = [(text, seed, ways[(text + seed) % 4]) for text in range(16) for seed in range(seeds)]
    readings = [rig.reading(text, seed, most=most, **way) for text, seed, way in wanted]
    batch = rig.batch(8)
    run(batch, readings)
    tokens = 0
    for reading, (text, seed, way) in zip(readings, wanted, strict=True):
        theirs, scores = rig.upstream_draws(text, seed, most=most, **way)
        ours = reading.draws.tokens
        tokens += len(theirs)
        if theirs == ours:
            continue
        at = next((n for n, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other), None)
        at = min(len(theirs), len(ours)) if at is None else at
        values, which = batch.likeliest[reading.job][at]
        difference = max(
            abs(float(scores[at][token]) - float(value))
            for value, token in zip(values, which, strict=True)
            if float(scores[at][token]) > -float("inf")
        )
        by_rank = float((scores[at].exp().topk(25).values - values[:25].exp()).abs().max())
        ties.append({"job": reading.job, "at": at, "log p": difference, "p by rank": by_rank})
        assert difference < CLOSE and (by_rank < CLOSE or not reading.draws.may_end), ties[-1]
    return {"jobs": len(readings), "tokens": tokens, "ended": sum(not one.cut_off for one in readings), "ties": ties}


def alone(rig: Rig, rows: int, wanted: list[dict[str, Any]]) -> list[tuple[list[int], list[str]]]:
    """What each reading is by itself, in a batch of its own."""
    results = []
    for one in wanted:
        batch = rig.batch(rows)
        reading = rig.reading(**one)
        run(batch, [reading])
        results.append((reading.draws.tokens, batch.digests[reading.job]))
    return results


def apart(rig: Rig, size: str = "12") -> dict[str, Any]:
    """Bit for bit what a reading is alone, under any neighbours, in any row, suspended at any step."""
    # Computed one by one, and by numbers of rows.
    for rows in (2, 5):
        _apart(rig, rows, int(size))
    return {"readings": int(size)}


def _apart(rig: Rig, rows: int, size: int) -> None:
    draw = random.Random(1)
    wanted: list[dict[str, Any]] = [
        {"number": number, "seed": number, "most": 6 + number % 20, "method": ("ras", "topk")[number % 3 == 2]}
        for number in range(size)
    ]
    expected = alone(rig, rows, wanted)
    for _ in range(2):
        readings = [rig.reading(**one) for one in wanted]
        order = draw.sample(readings, len(readings))
        # Another that leaves in the middle of its prompt, or of its tokens.
        leavers = [rig.reading(17 + n, n, most=25) for n in range(4)]
        for n, leaver in enumerate(leavers):
            order.insert(2 + 2 * n, leaver)
        batch = rig.batch(rows)
        run(batch, order, lambda: _disturb(batch, readings, leavers, draw))  # noqa: B023 - called in this turn only
        found = [(one.draws.tokens, batch.digests[one.job]) for one in readings]
        unequal = [one.job for one, ours, own in zip(readings, found, expected, strict=True) if ours != own]
        assert not unequal, unequal


def _disturb(batch: BatchedLlm, readings: list[Reading], leavers: list[Reading], draw: random.Random) -> None:
    for one in readings:
        (batch.hold if draw.random() < (0.5 if one.held else 0.1) else batch.go_on)(one)
    for leaver in leavers:
        if leaver.row >= 0 and draw.random() < 0.2:
            batch.leave(leaver)
            leaver.ended = True


def draws(rig: Rig, size: str = "300") -> dict[str, Any]:
    """From the same scores, the tokens that the engine draws with upstream's functions and torch's own generator."""
    ats, ate, eoa = rig.llm.ats, rig.llm.ate, rig.llm.eoa
    Watch(rig.llm, rig.upstream.flow)
    logits_of = torch.Generator().manual_seed(3)
    vocabulary = rig.llm.llama.lm_head.weight.shape[0]
    kinds = ["plain", "flat", "ended", "over", "only the end", "end at the top", "ties"]
    redrawn = 0
    for number in range(int(size)):
        kind = kinds[number % len(kinds)]
        logits = torch.randn(vocabulary, generator=logits_of) * (0.1 if kind == "flat" else 3)
        if kind == "over":
            logits[ate + 1 :] += 30
        if kind == "only the end":
            logits[:] = -float("inf")
            logits[eoa] = 0
        if kind == "end at the top":
            logits[eoa] = logits.max() + 3
        if kind == "ties":
            logits[ats : ats + 5] = logits.max() + 2
        method, top_k = ("ras", "topk")[number // 7 % 2], (1, 5, 25, 700)[number % 4]
        may_end = kind != "ended" and number % 3 > 0
        before = [ats + 1] * 9 if kind == "ties" else []
        torch.manual_seed(number)
        scores = logits.log_softmax(-1)
        theirs: list[Any] = []
        ours = Draws(method, top_k, torch.Generator().manual_seed(number), 0 if may_end else 99, list(before))
        for _ in range(4):
            try:
                if method == "ras":
                    masked = scores.clone()
                    if not may_end:
                        masked[eoa] = -float("inf")
                    theirs.append(int(rig.llm.sampling_ids_ras(masked, list(before), top_k)))
                else:
                    theirs.append(int(rig.llm.sampling_ids(scores, top_k, 1, ignore_eos=not may_end)))
            except EngineError:
                theirs.append("none")
        mine = [sampling.draw(logits[None].clone(), [ours], Audio(ats, ate, eoa))[0] for _ in range(4)]
        named = ["none" if isinstance(one, EngineError) else one for one in mine]
        assert named == theirs, (number, kind, method, top_k, may_end, named, theirs)
        redrawn += kind == "over"
    return {"draws": 4 * int(size)}


def reach(_: Rig, __: str = "") -> dict[str, Any]:
    """Attention gives a row the same bits for any number of places that is read, with heads of a large model's size."""
    draw = torch.Generator().manual_seed(1)
    rows, kv_heads, group, size, places = 4, 2, 4, 128, 2_048
    q = torch.randn(rows, kv_heads, group, size, generator=draw)
    keys, values = (torch.randn(rows, kv_heads, places, size, generator=draw) for _ in range(2))
    at = torch.tensor([0, 3, 200, 255])
    heard = []
    for end in (256, 512, places):
        given = (q, keys[:, :, :end], values[:, :, :end])
        mask = (torch.arange(end) <= at[:, None])[:, None, None]
        heard.append(llama._attention_in_blocks(*given, attn_mask=mask))
        torchs = functional.scaled_dot_product_attention(*given, attn_mask=mask)
        assert float((heard[-1] - torchs).abs().max()) < 1e-5
        assert torch.equal(heard[0], heard[-1]), end
    return {}


def no_number(rig: Rig, _: str = "") -> dict[str, Any]:
    """A text whose logits are no numbers fails by itself, and what is spoken in its row after it is as always."""
    # Computed together.
    rows = 5
    wanted: dict[str, Any] = {"number": 3, "seed": 5, "most": 12}
    (expected,) = alone(rig, rows, [wanted])
    batch = rig.batch(rows)
    bad, beside = rig.reading(2, 0, most=50), rig.reading(**wanted)

    def spoil() -> None:
        if bad.row >= 0:
            batch._llama.values[:, bad.row, :, 0] = float("nan")

    run(batch, [bad, beside], spoil)
    assert isinstance(bad.error, EngineError) and "probabilities" in str(bad.error)
    assert (beside.draws.tokens, batch.digests[beside.job]) == expected
    for job in ("first", "second"):
        after = rig.reading(**wanted)
        after.job = job
        filler = rig.reading(1, 1, most=14)
        run(batch, [after, filler] if job == "first" else [filler, after])
        assert (after.draws.tokens, batch.digests[job]) == expected
    return {}


def mutations(rig: Rig, _: str = "") -> dict[str, Any]:
    """Each fault that could make one text sound by another is found by one of the checks above."""
    unnoticed = []
    for name, (mutant, check) in MUTANTS.items():
        undo = mutant(rig)
        try:
            check(rig)
        except AssertionError:
            pass
        else:
            unnoticed.append(name)
        finally:
            undo()
    assert not unnoticed, unnoticed
    return {"mutants": len(MUTANTS)}


def _patched(owner: Any, name: str, new: Any) -> Callable[[Rig], Callable[[], None]]:
    def patch(_: Rig) -> Callable[[], None]:
        old = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        setattr(owner, name, new(old))
        return lambda: setattr(owner, name, old)

    return patch


def _without_mask(init: Any) -> Any:
    def blind(self: Any, *args: Any, **keys: Any) -> None:
        init(self, *args, **keys)
        self._every_place = torch.zeros_like(self._every_place)

    return blind


def _counts_of_any_bits(self: Any) -> list[int]:
    return [*range(1, self.rows + 1)]


def _one_too_far(step: Any) -> Any:
    return lambda self, last, at, reach, first=0: step(self, last, at + 1, reach + 1, first)


def _held_as_free(logits: Any) -> Any:
    def forgetful(self: Any, live: list[Reading]) -> Any:
        rows = self._rows
        self._rows = [one if one is None or not one.held else None for one in rows]
        try:
            return logits(self, live)
        finally:
            self._rows = rows

    return forgetful


def _joining_as_free(logits: Any) -> Any:
    def forgetful(self: Any, live: list[Reading]) -> Any:
        rows = self._rows
        self._rows = [one if one is None or one.taken_in == len(one.ids) else None for one in rows]
        try:
            return logits(self, live)
        finally:
            self._rows = rows

    return forgetful


def _one_short(move: Any) -> Any:
    return lambda self, source, target, count: move(self, source, target, count - 1)


def _one_generator(draw: Any) -> Any:
    shared = torch.Generator()

    def sharing(logits: Any, rows: list[Draws], audio: Audio) -> Any:
        for one in rows:
            one.generator = shared
        return draw(logits, rows, audio)

    return sharing


def _few(rig: Rig) -> None:
    same_as_upstream(rig, "1")


def _draws(rig: Rig) -> None:
    draws(rig, "60")


MUTANTS: dict[str, tuple[Any, Callable[[Rig], Any]]] = {
    "no mask": (_patched(Llama, "__init__", _without_mask), _few),
    "a place too far": (_patched(Llama, "step", _one_too_far), _few),
    "what failed stays in the cache": (_patched(Llama, "wipe", lambda _: lambda *_: None), no_number),
    "a suspended row is written over": (_patched(BatchedLlm, "_logits", _held_as_free), apart),
    "a joining row is written over": (_patched(BatchedLlm, "_logits", _joining_as_free), apart),
    "fewer rows that round otherwise": (_patched(Llama, "equal_counts", lambda _: _counts_of_any_bits), apart),
    "what is parked lacks its last place": (_patched(Llama, "move", _one_short), apart),
    "one generator for all": (_patched(llm_batch, "draw", _one_generator), apart),
    "what came a moment ago comes again": (_patched(sampling, "_WINDOW", lambda _: -(10**6)), _draws),
    "a smaller sum": (_patched(sampling, "_TOP_P", lambda _: 0.6), _few),
    "the end may come at once": (_patched(Draws, "may_end", lambda _: True), _few),
}


def main(root: str, cache: str, check: str, *size: str) -> None:
    rig = Rig(root, cache, half=check.endswith("_in_half"))
    found = globals()[check.removesuffix("_in_half")](rig, *size)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
