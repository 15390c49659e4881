"""Ids of many samples in one block of memory: a Python string takes three times the bytes of an id."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ERRORS = "surrogatepass"


class SampleIds(Sequence[str]):
    """A read-only sequence of N strings; equal to any sequence of the same ones."""

    def __init__(self, data: bytes | bytearray, ends: NDArray[np.int64]) -> None:
        self._data, self._ends = data, ends

    @classmethod
    def of(cls, ids: Iterable[str]) -> "SampleIds":
        encoded = [sample_id.encode("utf-8", _ERRORS) for sample_id in ids]
        return cls(b"".join(encoded), np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Iterable[Sequence[str]]) -> "SampleIds":
        """Return the ids of all parts, in order; each is added as it comes."""
        data, lengths = bytearray(), array("q", [0])
        for part in parts:
            compact = part if isinstance(part, SampleIds) else cls.of(part)
            data += compact._data
            lengths.frombytes(compact.lengths().tobytes())
        return cls(data, np.cumsum(np.frombuffer(lengths, np.int64)))

    def lengths(self) -> NDArray[np.int64]:
        """Return the bytes of each id, int64 [N]."""
        return np.diff(self._ends)

    def encoded(self) -> bytes | bytearray:
        """Return all ids, one after the other."""
        return self._data

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
        return self._data[self._ends[place] : self._ends[place + 1]].decode("utf-8", _ERRORS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]
