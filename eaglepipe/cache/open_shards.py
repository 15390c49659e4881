"""The open shards of a cache: few at a time, and each held against the manifest when it is opened.

A shard is a local file, the local copy of a store's, or one that comes from a store sample by sample.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from eaglepipe.cache.manifest import Manifest, repair_advice
from eaglepipe.cache.opening import check_size
from eaglepipe.cache.piecewise import PiecewiseShard
from eaglepipe.cache.remote.shards import held_shard, is_away, with_room
from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.cache.schema import arrow_schema
from eaglepipe.errors import CorruptError
from eaglepipe.stores.local import mirror_of
from eaglepipe.stores.room import Hold
from eaglepipe.stores.traffic import counted_wait

MAX_OPEN_SHARDS = 32


@dataclass(frozen=True, kw_only=True)
class OpenShard:
    """An open shard; `hold` keeps the local copy of a store's shard for as long as this lives."""

    file: ArrowFile
    hold: Hold | None = None
    pieces: PiecewiseShard | None = None  # if its samples come one by one


class OpenShards:
    """Shards that are open in this process, of which the longest unused is closed first; a pickled copy has none."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._spec = manifest.shard_spec()
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self.by_sample = False
        """Whether shards of a stored cache are fetched sample by sample, and not whole."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}

    def __len__(self) -> int:
        return len(self._opened)

    def file(self, shard: int, position: int) -> ArrowFile:
        """Return the open file of a shard, in which the sample at a position is at hand; raises what `open` does."""
        opened = self._opened.get(shard)
        if opened is None:
            opened = with_room(lambda: self.open(shard), self._close_oldest)
            self._opened[shard] = opened
            if len(self._opened) > MAX_OPEN_SHARDS:
                self._close_oldest()
        self._opened.move_to_end(shard)
        if (pieces := opened.pieces) is not None and not pieces.has(position):
            with counted_wait():
                with_room(lambda: pieces.fetch(position), self._close_oldest)
        return opened.file

    def close(self, shard: int) -> None:
        """Close a shard, if it is open."""
        self._opened.pop(shard, None)

    def open(self, shard: int) -> OpenShard:
        """Open a shard, for the caller alone.

        Raises:
            CorruptError: its size, columns, identity or number of samples is not what the manifest declares.
            ArrowException, OSError, ValueError: it cannot be read.
        """
        entry = self._manifest.shards[shard]
        if self.by_sample and is_away(self._folder, entry):
            mirror = mirror_of(self._folder)
            assert mirror is not None
            with counted_wait():
                pieces = PiecewiseShard(mirror, entry)
            return self._checked(shard, OpenShard(file=ArrowFile(pieces.path, num_bytes=entry.bytes), pieces=pieces))
        hold = held_shard(self._folder, entry)
        check_size(self._folder, entry)
        return self._checked(shard, OpenShard(file=ArrowFile(self._folder / entry.path), hold=hold))

    def _close_oldest(self) -> bool:
        """Close the shard that was not read for the longest; returns whether there was one."""
        if not self._opened:
            return False
        self._opened.popitem(last=False)
        return True

    def _checked(self, shard: int, opened: OpenShard) -> OpenShard:
        """Return an open shard whose footer is that of the manifest."""
        entry, file = self._manifest.shards[shard], opened.file
        path = self._folder / entry.path
        check_schema(
            file.schema, arrow_schema(self._spec, identity=self._manifest.identity, shard=int(path.stem)), path
        )
        if file.num_batches != entry.samples:
            raise CorruptError(
                f"{path}: {file.num_batches} samples, not {entry.samples}; {repair_advice(self._folder)}"
            )
        return opened


def check_schema(actual: pa.Schema, expected: pa.Schema, path: Path) -> None:
    """Refuse a shard whose columns or identity are not this cache's, naming the field."""
    for field in expected:
        index = actual.get_field_index(field.name)
        if index < 0:
            raise CorruptError(f"{path}: column {field.name!r} is missing")
        if not actual.field(index).equals(field, check_metadata=True):
            raise CorruptError(f"{path}: column {field.name!r} is {actual.field(index)}, not {field}")
    if actual.names != expected.names:
        raise CorruptError(f"{path}: columns {actual.names}, not {expected.names}")
    if actual.metadata != expected.metadata:
        raise CorruptError(f"{path}: belongs to another cache or is another shard: {actual.metadata}")
