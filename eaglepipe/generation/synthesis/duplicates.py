"""Texts that were seen before: word for word, or nearly so by the Jaccard similarity of their character 5-grams.

Candidates come from MinHash with bands (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4);
each is compared exactly, so nothing is a duplicate by chance. The first of two stays.
"""

import re
import unicodedata

import numpy as np
import xxhash
from numpy.typing import NDArray

_GRAM = 5  # characters
_HASHES = 128
_FOUND = 0.99  # probability with which a pair at the limit shares a band
_ERROR = 0.15  # of an estimate by 128 hashes, whose standard deviation is 0.044 at most
_WORDS = re.compile(r"\w+")
_FACTORS, _OFFSETS = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, (2, _HASHES, 1), dtype=np.uint64)


class SeenTexts:
    """The texts so far; one that is at least `max_similarity` like an earlier one is its near duplicate."""

    def __init__(self, max_similarity: float) -> None:
        self._limit = max_similarity
        self._rows = _rows_of_a_band(max_similarity)
        self._exact: set[str] = set()
        self._texts: list[str] = []
        self._signatures: list[NDArray[np.uint32]] = []  # [128] each
        self._bands: dict[bytes, list[int]] = {}

    def add(self, text: str) -> str | None:
        """Take a text, unless it was seen before: then the reason is returned."""
        plain = normalised(text)
        if plain in self._exact:
            return "duplicate"
        if self._limit < 1.0:
            grams = _grams(plain)
            signature = _signature(grams)
            bands = self._bands_of(signature)
            if self._is_near(grams, signature, bands):
                return "near duplicate"
            for band in bands:
                self._bands.setdefault(band, []).append(len(self._texts))
            self._texts.append(plain)
            self._signatures.append(signature)
        self._exact.add(plain)
        return None

    def _is_near(self, grams: frozenset[str], signature: NDArray[np.uint32], bands: list[bytes]) -> bool:
        candidates = sorted({number for band in bands for number in self._bands.get(band, ())})
        if not candidates:
            return False
        estimates = (np.stack([self._signatures[number] for number in candidates]) == signature).mean(axis=1)
        likely = np.flatnonzero(estimates >= self._limit - _ERROR)
        return any(jaccard(grams, _grams(self._texts[candidates[index]])) >= self._limit for index in likely)

    def _bands_of(self, signature: NDArray[np.uint32]) -> list[bytes]:
        rows = signature.reshape(-1, self._rows)
        return [number.to_bytes(2, "little") + row.tobytes() for number, row in enumerate(rows)]


def _signature(grams: frozenset[str]) -> NDArray[np.uint32]:
    """Return the lowest hash of the grams by each of 128 functions."""
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams), np.uint64, len(grams))
    lowest: NDArray[np.uint32] = (
        ((_FACTORS | np.uint64(1)) * hashes + _OFFSETS >> np.uint64(32)).min(axis=1).astype(np.uint32)
    )
    return lowest


def normalised(text: str) -> str:
    """Return the words of a text in lower case, or the text itself if it has none."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORDS.findall(plain)) or plain.strip()


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the share of the elements of either set that are in both."""
    return len(a & b) / (len(a | b) or 1)


def _grams(plain: str) -> frozenset[str]:
    return frozenset(plain[start : start + _GRAM] for start in range(max(1, len(plain) - _GRAM + 1)))


def _rows_of_a_band(similarity: float) -> int:
    """Return the most rows of a band with which pairs at the limit are found as good as always."""
    sizes = (rows for rows in (16, 8, 4, 2) if 1 - (1 - similarity**rows) ** (_HASHES // rows) >= _FOUND)
    return next(sizes, 1)
