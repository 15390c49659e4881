"""Ids of many samples in one block of memory: a Python string takes three times the bytes of an id."""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import xxhash
from numpy.typing import NDArray

_ERRORS = "surrogatepass"
_ROW_NUMBER = re.compile(r"#([2-9]|[1-9]\d+)\Z")
_BLOCK = 65_536  # ids


def conversation_hash(sample_id: str) -> int:
    """Return the 64 bits by which a conversation is held out or trains; the same in every cache, run and version.

    The rows of one conversation that `data regenerate` writes, `id`, `id#2` and so on, have the same number.
    """
    return xxhash.xxh3_64_intdigest(_ROW_NUMBER.sub("", sample_id).encode())


def conversation_hashes(sample_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return the hash of each id's conversation, uint64 [N]."""
    return np.fromiter(map(conversation_hash, sample_ids), np.uint64, len(sample_ids))


class SampleIds(Sequence[str]):
    """A read-only sequence of N strings; equal to any sequence of the same ones."""

    def __init__(self, data: bytes | bytearray, ends: NDArray[np.int64]) -> None:
        self._data, self._ends = data, ends

    @classmethod
    def of(cls, ids: Iterable[str]) -> "SampleIds":
        encoded = [sample_id.encode("utf-8", _ERRORS) for sample_id in ids]
        return SampleIds(b"".join(encoded), np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Iterable[Sequence[str]]) -> "SampleIds":
        """Return the ids of all parts, in order; each is added as it comes."""
        data, lengths = bytearray(), array("q", [0])
        for part in parts:
            compact = part if isinstance(part, SampleIds) else cls.of(part)
            data += compact.encoded()
            lengths.frombytes(compact.lengths().tobytes())
        return SampleIds(data, np.cumsum(np.frombuffer(lengths, np.int64)))

    def lengths(self) -> NDArray[np.int64]:
        """Return the bytes of each id, int64 [N]."""
        return np.diff(self._ends)

    def encoded(self) -> bytes | bytearray:
        """Return all ids, one after the other."""
        return self._data

    def span(self, start: int, stop: int) -> tuple[NDArray[np.int64], bytes]:
        """Return the lengths in bytes of the ids `start` to `stop`, and their bytes one after the other."""
        ends = self._ends[start : stop + 1]
        return np.diff(ends), bytes(self._data[ends[0] : ends[-1]])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[str, ...]: ...
    def __getitem__(self, number: int | slice) -> str | tuple[str, ...]:
        if isinstance(number, slice):
            return tuple(self[place] for place in range(*number.indices(len(self))))
        place = range(len(self))[number]
        return self.span(place, place + 1)[1].decode("utf-8", _ERRORS)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            lengths, data = self.span(start, min(start + _BLOCK, len(self)))
            end = 0
            for length in lengths.tolist():
                begin, end = end, end + length
                yield data[begin:end].decode("utf-8", _ERRORS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]
