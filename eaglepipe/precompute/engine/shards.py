"""Shards that are filled from an engine's answers: samples come in any order and are written in that of the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eaglepipe.cache.manifest import load_document
from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.cache.samples.record_batch import batch_to_sample
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import ShardItem, ShardWriter, shard_path, sidecar_path

UNKNOWN_PLACES = 2**62
"""Number of places of a shard that is not known yet."""


@dataclass
class ShardInMaking:
    """A shard of which some samples may have come before their turn."""

    writer: ShardWriter
    num_places: int
    waiting: dict[int, ShardItem] = field(default_factory=dict)  # by place
    next_place: int = 0

    def put(self, place: int, item: ShardItem) -> bool:
        """Take the sample of a place, and write all whose turn it is; returns whether the shard is published."""
        assert place not in self.waiting and place >= self.next_place, f"place {place} is filled already"
        self.waiting[place] = item
        while self.next_place in self.waiting:
            self.writer.add(self.waiting.pop(self.next_place))
            self.next_place += 1
        return self.finished()

    def finished(self) -> bool:
        """Publish the shard if all its places are filled; returns whether they are."""
        if self.next_place < self.num_places:
            return False
        self.writer.finish()
        return True


class ShardsInMaking:
    """The shards that are open at once; leaving them unfinished drops them."""

    def __init__(self, folder: Path, spec: ShardSpec, identity: str) -> None:
        self._folder, self._spec, self._identity = folder, spec, identity
        self._open: dict[int, ShardInMaking] = {}
        self.published: list[int] = []

    def put(self, shard: int, num_places: int, place: int, item: ShardItem) -> None:
        """Take the sample of a place in a shard, which is opened if it is its first and published if it is its last."""
        if self._opened(shard, num_places).put(place, item):
            self._close(shard)

    def end(self, shard: int, num_places: int) -> None:
        """Say how many places a shard has whose number was not known; it is published if all are filled."""
        in_making = self._opened(shard, num_places)
        in_making.num_places = num_places
        if in_making.finished():
            self._close(shard)

    def _opened(self, shard: int, num_places: int) -> ShardInMaking:
        if shard not in self._open:
            writer = ShardWriter(self._folder, shard, spec=self._spec, identity=self._identity)
            self._open[shard] = ShardInMaking(writer=writer, num_places=num_places)
        return self._open[shard]

    def _close(self, shard: int) -> None:
        del self._open[shard]
        self.published.append(shard)

    def put_known(self, shard: int, num_places: int, places: Mapping[str, int], spare: Path) -> None:
        """Take the known samples of a shard, whose places go by their ids, from the folder of `write_spare`."""
        for item in read_spare(spare, shard):
            sample_id = item.sample_id if isinstance(item, CachedSample) else item[0]
            self.put(shard, num_places, places[sample_id], item)

    def abort(self) -> None:
        """Drop the shards that are not published."""
        for shard in self._open.values():
            shard.writer.abort()
        self._open.clear()


def write_spare(spare: Path, shard: int, items: list[ShardItem], *, spec: ShardSpec, identity: str) -> None:
    """Write samples of a shard into a folder where no cache is."""
    writer = ShardWriter(spare, shard, spec=spec, identity=identity)
    try:
        for item in items:
            writer.add(item)
        writer.finish()
    finally:
        writer.abort()


def read_spare(spare: Path, shard: int) -> list[ShardItem]:
    """Read what `write_spare` wrote."""
    file = ArrowFile(shard_path(spare, shard))
    batches = [file.read(number) for number in range(file.num_batches)]
    samples: list[ShardItem] = [batch_to_sample(read.batch, read.metadata) for read in batches]
    refused = load_document(sidecar_path(spare, shard), Sidecar).refused
    return [*samples, *((sample.sample_id, sample.reason) for sample in refused)]
