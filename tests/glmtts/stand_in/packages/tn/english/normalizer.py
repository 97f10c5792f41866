"""An English normaliser: it leaves all to upstream."""

from __future__ import annotations


class Normalizer:
    def normalize(self, text: str) -> str:
        return text
