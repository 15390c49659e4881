"""`index.safetensors`: the metadata of all samples as arrays, so that millions of them open without their sidecars.

It repeats the sidecars and is bound to them by a hash over their digests, and to its own bytes by another. A file that
is stale, cut or altered is no index: whoever opens the cache reads the sidecars instead. Ids stay in the file until
they are asked for; nothing is mapped, so a file cut meanwhile is an error and no bus error.
"""

import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from eaglepipe.cache.samples.sample_ids import SampleIds, conversation_hashes
from eaglepipe.cache.types import SampleIndex
from eaglepipe.errors import CorruptError
from eaglepipe.files.publish import published_file
from eaglepipe.files.system_errors import explained_read_errors

INDEX_FILE = "index.safetensors"
_FORMAT = "eaglepipe-index-1"
_MAX_HEADER_BYTES = 2**16
_BLOCK_BYTES = 2**22
_DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
_NO_INDEX = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_COLUMNS = {
    "conversation_hashes": "U64",
    "id_ends": "I64",
    "num_tokens": "I32",
    "num_supervised": "I32",
    "source_of": "I32",
    "ids": "U8",
    "sources": "U8",
}


def index_key(identity: str, sidecar_digests: Sequence[str]) -> str:
    """Return the hash that binds an index to the sidecars of one cache, in order."""
    return xxhash.xxh3_128_hexdigest("\n".join([identity, *sidecar_digests]).encode())


def publish_index(path: Path, index: SampleIndex, key: str) -> None:
    """Publish the index of a cache's samples; equal indices give equal bytes."""
    ids = index.sample_ids if isinstance(index.sample_ids, SampleIds) else SampleIds.of(index.sample_ids)
    hashes = conversation_hashes(ids) if index.conversation_hashes is None else index.conversation_hashes
    columns = {
        "conversation_hashes": hashes,
        "id_ends": np.concatenate([[0], np.cumsum(ids.lengths())]),
        "num_tokens": index.num_tokens,
        "num_supervised": index.num_supervised,
        "source_of": index.source_of,
        "ids": np.frombuffer(ids.encoded(), np.uint8),
        "sources": np.frombuffer(json.dumps(index.sources).encode(), np.uint8),
    }
    arrays = {name: np.ascontiguousarray(columns[name], _DTYPES[dtype]) for name, dtype in _COLUMNS.items()}
    digest = xxhash.xxh3_128()
    for array in arrays.values():
        digest.update(array.data)
    with published_file(path) as file:
        file.stream.write(_header(arrays, {"format": _FORMAT, "key": key, "xxh3_128": digest.hexdigest()}))
        for array in arrays.values():
            file.stream.write(array.data)


def is_bound(path: Path, key: str) -> bool:
    """Return whether the header of a file is that of the index of these sidecars."""
    try:
        return _Columns.open(path).metadata.get("key") == key
    except _NO_INDEX:
        return False


def read_index(path: Path, key: str) -> SampleIndex | None:
    """Return the index in a file; None if there is none, or it is not that of these sidecars, byte for byte."""
    try:
        file = _Columns.open(path)
        if file.metadata.get("format") != _FORMAT or file.metadata.get("key") != key or not file.is_whole():
            return None
        sources = json.loads(file.read("sources").tobytes())
        index = SampleIndex(
            sample_ids=StoredIds(file),
            num_tokens=file.read("num_tokens"),
            num_supervised=file.read("num_supervised"),
            sources=tuple(sources),
            source_of=file.read("source_of"),
            conversation_hashes=file.read("conversation_hashes"),
        )
    except _NO_INDEX:
        return None
    return index if _is_consistent(index, file) else None


def _is_consistent(index: SampleIndex, file: "_Columns") -> bool:
    """Whether columns of one length number ids and sources that are there."""
    count, ends = len(index.num_tokens), file.count("id_ends")
    lengths = (len(index.num_supervised), len(index.source_of), file.count("conversation_hashes"), ends - 1)
    if set(lengths) != {count}:
        return False
    bounds = file.read("id_ends", 0, 1), file.read("id_ends", count, count + 1)
    if (int(bounds[0][0]), int(bounds[1][0])) != (0, file.count("ids")):
        return False
    return count == 0 or bool(
        index.source_of.min() >= 0
        and index.source_of.max() < len(index.sources)
        and index.num_supervised.min() >= 0
        and (index.num_supervised <= index.num_tokens).all()
    )


class StoredIds(SampleIds):
    """Ids that stay in the file of an index; each is read when it is asked for."""

    def __init__(self, file: "_Columns") -> None:
        self._file = file

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self._file.read("id_ends"))

    def encoded(self) -> bytes:
        return self._file.read("ids").tobytes()

    def span(self, start: int, stop: int) -> tuple[NDArray[np.int64], bytes]:
        ends = self._file.read("id_ends", start, stop + 1)
        begin, end = int(ends[0]), int(ends[-1])
        if not 0 <= begin <= end <= self._file.count("ids"):
            raise CorruptError(f"{self._file.path}: altered since it was opened; run the same command again")
        return np.diff(ends), self._file.read("ids", begin, end).tobytes()

    def __len__(self) -> int:
        return self._file.count("id_ends") - 1


@dataclass(frozen=True)
class _Column:
    dtype: np.dtype[Any]
    start: int
    count: int


class _Columns:
    """The arrays of an open safetensors file, each read by itself."""

    def __init__(self, path: Path, metadata: Mapping[str, str], columns: Mapping[str, _Column], start: int) -> None:
        self.path, self.metadata = path, metadata
        self._columns, self._start = columns, start
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def open(cls, path: Path) -> "_Columns":
        """Read the header.

        Raises:
            OSError: no such file.
            ValueError, KeyError, TypeError, AttributeError: not a file of these columns.
        """
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError("header")
            header = json.loads(stream.read(length))
        columns, end = {}, 0
        for name, dtype in _COLUMNS.items():
            entry = header[name]
            start, stop = entry["data_offsets"]
            width = _DTYPES[dtype].itemsize
            if entry["dtype"] != dtype or start != end or stop < start or entry["shape"] != [(stop - start) // width]:
                raise ValueError(name)
            columns[name], end = _Column(_DTYPES[dtype], start, (stop - start) // width), stop
        if path.stat().st_size != 8 + length + end:
            raise ValueError("size")
        return cls(path, header["__metadata__"], columns, 8 + length)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Columns, (self.path, self.metadata, self._columns, self._start)

    def is_whole(self) -> bool:
        """Compare all arrays with their digest, without keeping them."""
        digest, position = xxhash.xxh3_128(), self._start
        while block := os.pread(self._descriptor, _BLOCK_BYTES, position):
            digest.update(block)
            position += len(block)
        return digest.hexdigest() == self.metadata.get("xxh3_128")

    def count(self, name: str) -> int:
        return self._columns[name].count

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return the entries `start` to `stop` of an array.

        Raises:
            CorruptError: the file was cut since it was opened.
        """
        column = self._columns[name]
        array = np.empty((column.count if stop is None else stop) - start, column.dtype)
        view, done = array.data.cast("B") if array.size else memoryview(b""), 0
        with explained_read_errors(self.path):
            while done < len(view):
                position = self._start + column.start + start * column.dtype.itemsize + done
                if (got := os.preadv(self._descriptor, [view[done:]], position)) == 0:
                    raise CorruptError(f"{self.path}: cut since it was opened; run the same command again")
                done += got
        return array


def _header(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the header of a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in arrays.items():
        offsets = [position, position + array.nbytes]
        entries[name] = {"dtype": _COLUMNS[name], "shape": [array.size], "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def id_blocks(ids: Sequence[str], size: int) -> Iterator[tuple[NDArray[np.int64], bytes]]:
    """Yield the lengths in bytes, and the bytes one after the other, of `size` ids at a time."""
    compact = ids if isinstance(ids, SampleIds) else None
    for start in range(0, len(ids), size):
        stop = min(start + size, len(ids))
        yield (compact.span(start, stop) if compact else SampleIds.of(ids[start:stop]).span(0, stop - start))
