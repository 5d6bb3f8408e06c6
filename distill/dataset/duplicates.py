"""Near-duplicate prompts, found by MinHash over shingles of words, with seeds that never change.

Source: Broder, "On the resemblance and containment of documents" (1997); MinHash and its index are datasketch's.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from datasketch import MinHash, MinHashLSH

_PERMUTATIONS = 128
_SEED = 1
_SHINGLE_WORDS = 3
_RECALL = 0.99
# A word is a run of letters and digits; in scripts without spaces, each character is one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Return every run of three words, independent of case, spacing and Unicode form; of shorter texts all words."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return frozenset(tuple(words[start : start + _SHINGLE_WORDS]) for start in range(last))


class NearDuplicates:
    """An index of texts that finds near-duplicates.

    Args:
        threshold: Least estimated Jaccard similarity of near-duplicates' shingles, in (0, 1].
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = MinHashLSH(params=_bands(threshold), num_perm=_PERMUTATIONS)
        self._sketches: list[MinHash] = []

    def add(self, text: str) -> None:
        sketch = _sketch(text)
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)

    def has(self, text: str) -> bool:
        sketch = _sketch(text)
        return any(sketch.jaccard(self._sketches[found]) >= self._threshold for found in self._index.query(sketch))


@functools.lru_cache(maxsize=2)  # callers usually add a text after looking it up
def _sketch(text: str) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    sketch.update_batch([" ".join(shingle).encode("utf-8", "replace") for shingle in sorted(shingles(text))])
    return sketch


def _bands(threshold: float) -> tuple[int, int]:
    """Return bands and rows a band of the most selective index that finds 99 % of pairs at the threshold."""
    for rows in range(_PERMUTATIONS // 2, 1, -1):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return _PERMUTATIONS, 1
