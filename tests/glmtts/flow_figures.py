"""Compares daemon/engines/glmtts/flow_batch.py with upstream's flow model and vocoders; run by a root's interpreter.

``flow_figures.py ROOT CACHE`` prints a line of JSON, which test_flow_batch.py judges.
"""

from __future__ import annotations

import json
import sys
import types
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glmtts.daemon.engines.glmtts.upstream import Upstream, UpstreamError

RATES = (24_000, 32_000)
#: What is removed, and what stands in its place.
MASKS = {
    "before the first convolution": ("self._silenced(hidden.transpose(1, 2))", "hidden.transpose(1, 2)"),
    "between the convolutions": ("self._silenced(bend(first(hidden)))", "bend(first(hidden))"),
    "attention": ("attn_mask=self._heeded()", "attn_mask=None"),
    "embedding of the tokens": (
        "self._padded(model.estimator.text_emb_layer(codes, frames))",
        "model.estimator.text_emb_layer(functional.pad(codes, (0, (self._x.shape[1] - frames) // 2)), "
        "self._x.shape[1])",
    ),
}


def main(root: str, cache: str) -> None:
    has_vocos = (Path(root) / "ckpt/vocos2d/generator_jit.ckpt").exists()
    upstream = Upstream(Path(root), rates=RATES[: 1 + has_vocos], half_llm=False, cache_dir=Path(cache))
    figures = Figures(upstream)
    with figures.torch.inference_mode():
        print(json.dumps(figures.all()))


class Figures:
    def __init__(self, upstream: Upstream) -> None:
        import torch

        from glmtts.daemon.engines.glmtts import flow_batch

        self.torch = torch
        self.under_test = flow_batch
        self.upstream = upstream
        self.draw = torch.Generator().manual_seed(5)
        self.voices = [self.voice(number) for number in (37, 60)]
        self.texts = [self.tokens(number) for number in (21, 44)]

    def all(self) -> dict[str, Any]:
        exact, padded = (self.under_test.Flow(self.upstream.flow, multiple=multiple) for multiple in (1, 64))
        theirs = [self.theirs(*which) for which in self.whiches()]
        return {
            "unpadded": self.furthest(theirs, (self.ours(exact, *which) for which in self.whiches())),
            "padded": self.furthest(theirs, (self.ours(padded, *which) for which in self.whiches())),
            "without": {name: self.furthest(theirs, self.mutants(*change)) for name, change in MASKS.items()},
            "beside others": [self.beside_others(flow) for flow in (exact, padded)],
            "left of a cancelled run": self.left(padded),
            "vocoders": [self.vocoded(theirs[0], rate) for rate in self.upstream.vocoders],
            "modulations": self.kept_bytes(exact),
            "heard again": self.heard_again(exact),
            "changed checkouts": self.changed(),
        }

    def whiches(self) -> Iterable[tuple[int, int, int]]:
        """Voice, text and seed of the runs that are compared."""
        return [(0, 0, 0), (1, 0, 1), (1, 1, 2)]

    def voice(self, tokens: int) -> Any:
        from glmtts.daemon.engines.glmtts.voices import VoiceFeatures

        # Upstream's spectrogram may be a frame shorter or longer than the tokens say.
        mels = {rate: self.normal(1, 2 * tokens + 1, 80) - 5 for rate in RATES}
        return VoiceFeatures("", self.torch.zeros(1, 1), tuple(self.tokens(tokens)), self.normal(1, 192), mels)

    def tokens(self, count: int) -> list[int]:
        drawn: list[int] = self.torch.randint(32_760, (count,), generator=self.draw).tolist()
        return drawn

    def normal(self, *shape: int) -> Any:
        return self.torch.randn(*shape, generator=self.draw)

    def theirs(self, voice: int, text: int, seed: int) -> Any:
        features = self.voices[voice]
        self.torch.manual_seed(seed)
        mel, _ = self.upstream.flow.inference_with_cache(
            token=self.torch.tensor([self.texts[text]]),
            prompt_token=self.torch.tensor([features.speech_tokens], dtype=self.torch.int32),
            prompt_feat=features.mels[RATES[0]].clone(),
            embedding=features.speaker.clone(),
        )
        return mel

    def start(self, flow: Any, voice: int, text: int, seed: int) -> Any:
        generator = self.torch.Generator().manual_seed(seed)
        return flow.start(self.texts[text], self.voices[voice], RATES[0], generator)

    def ours(self, flow: Any, voice: int, text: int, seed: int) -> Any:
        run = self.start(flow, voice, text, seed)
        while not run.step():
            pass
        return run.mel

    def furthest(self, theirs: Iterable[Any], ours: Iterable[Any]) -> float:
        differences = []
        for one, other in zip(theirs, ours, strict=True):
            assert one.shape == other.shape, (one.shape, other.shape)
            differences.append(float((one - other).abs().max()))
        return max(differences)

    def mutants(self, old: str, new: str) -> list[Any]:
        source = Path(str(self.under_test.__file__)).read_text(encoding="utf-8")
        assert source.count(old) == 1, old
        mutant = types.ModuleType("mutant")
        mutant.__package__ = self.under_test.__package__
        sys.modules["mutant"] = mutant
        exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
        mutant.Flow._check = lambda _: None
        flow = mutant.Flow(self.upstream.flow, multiple=64)
        return [self.ours(flow, *which) for which in self.whiches()]

    def beside_others(self, flow: Any) -> bool:
        """Whether a run gives the same bits alone, and between the steps of others, one of them cancelled."""
        alone = self.ours(flow, 0, 0, 0)
        other, cancelled = self.start(flow, 1, 1, 7), self.start(flow, 1, 0, 8)
        other.step(), cancelled.step()
        run = self.start(flow, 0, 0, 0)
        while not run.step():
            other.step()
            if run.done == 4:
                del cancelled
        return bool(self.torch.equal(alone, run.mel))

    def left(self, flow: Any) -> int:
        """How much of a run is left after it was dropped between two steps."""
        run = self.start(flow, 0, 0, 0)
        run.step()
        watched = [weakref.ref(one) for one in (run, run._x, run._given)]
        del run
        return sum(one() is not None for one in watched)

    def vocoded(self, mel: Any, rate: int) -> dict[str, Any]:
        vocoder = self.upstream.vocoders[rate].vocoder
        self.torch.manual_seed(11)
        theirs = vocoder(mel)[0].numpy()
        before = self.torch.random.get_rng_state()
        generator = self.torch.Generator().manual_seed(11)
        ours = self.under_test.vocode(vocoder, mel, generator)
        again = self.under_test.vocode(vocoder, mel, generator)
        self.torch.manual_seed(11)
        vocoder(mel)
        theirs_again = vocoder(mel)[0].numpy()
        self.torch.random.set_rng_state(before)
        return {
            "difference": max(float(abs(ours - theirs).max()), float(abs(again - theirs_again).max())),
            "loudest": float(abs(theirs).max()),
            "undisturbed": bool(self.torch.equal(before, self.torch.random.get_rng_state())),
        }

    def kept_bytes(self, flow: Any) -> dict[str, int]:
        voice = self.voice(10)
        before = voice.bytes()
        flow.start(self.texts[0], voice, RATES[0], self.torch.Generator())
        return {"before": before, "after": voice.bytes(), "of them": sum(one.nbytes for one in voice.modulations)}

    def heard_again(self, flow: Any) -> list[int]:
        """How often each of three voices is heard that come in turn, in a cache with room for one's modulations."""
        import numpy as np

        from glmtts.daemon.engines.base import Reference
        from glmtts.daemon.engines.glmtts.voices import VoiceCache

        heard = [0, 0, 0]
        like = self.voice(20)
        flow.start(self.texts[0], like, RATES[0], self.torch.Generator())
        cache = VoiceCache(self.upstream, 0)
        cache._max_bytes = 2 * like.bytes()

        def extract(reference: Reference, *_: Any) -> Any:
            heard[int(reference.digest)] += 1
            return self.voice(20)

        cache._extract = extract  # type: ignore[method-assign, assignment]
        for turn in range(9):
            reference = Reference(np.zeros(1, np.float32), RATES[0], "", str(turn % 3))
            voice = cache.features(reference, "", RATES[0], lambda: None)
            flow.start(self.texts[0], voice, RATES[0], self.torch.Generator())
        return heard

    def changed(self) -> list[str]:
        """What is said of a checkout that computes something else, and of one that lacks a part."""
        estimator = self.upstream.flow.estimator
        said = []
        forward, part = estimator.forward, estimator.rotary_embed
        try:
            estimator.forward = lambda *args, **named: 1.05 * forward(*args, **named)
            said.append(self.refusal())
            estimator.forward = forward
            del estimator.rotary_embed
            said.append(self.refusal())
        finally:
            estimator.__dict__.pop("forward", None)
            estimator.rotary_embed = part
        return said

    def refusal(self) -> str:
        try:
            self.under_test.Flow(self.upstream.flow)
        except UpstreamError as error:
            return str(error)
        return "nothing"


if __name__ == "__main__":
    main(*sys.argv[1:])
