"""Shards of stored caches read sample by sample, for caches that are larger than the bound of local copies.

Training order is random over the whole cache, so that fetching whole shards would bring most of them again and again;
by sample, an epoch fetches each byte once. A sample is checked by its own digest when it is first read, as on a disk.
"""

from dataclasses import dataclass
from pathlib import Path

from eaglepipe.cache.manifest import ShardEntry
from eaglepipe.cache.samples.arrow_footer import TAIL_BYTES, batch_places, footer_bytes
from eaglepipe.errors import CorruptError
from eaglepipe.stores.local import Mirror, mirror_of
from eaglepipe.stores.room import PARTIAL_SUFFIX
from eaglepipe.stores.sparse import SparseCopy

_FIRST_GUESS = 64 * 2**10  # of a footer


class PiecewiseShard:
    """An open shard whose samples come when they are asked for."""

    def __init__(self, mirror: Mirror, entry: ShardEntry) -> None:
        """Fetch the footer.

        Raises:
            CorruptError: the store has no such shard.
            NoRoomError, ResourceError, UnreachableError: as `fetch`.
        """
        self._mirror, self._entry = mirror, entry
        self.path = (mirror.folder / entry.path).with_suffix(PARTIAL_SUFFIX)
        self._copy = SparseCopy(mirror.room, self.path, size=entry.bytes, parts=entry.samples + 2)
        self._places = self._read_places()

    def fetch(self, position: int) -> None:
        """Bring a sample to this machine, unless it is there.

        Raises:
            NoRoomError: too much is in use.
            CorruptError: the store has no such shard any more.
            UnreachableError: it does not answer.
            ResourceError: the bound is too small, or the disk full.
        """
        if position < len(self._places):
            self._copy.fill(position, *self._places[position], self._range)

    def has(self, position: int) -> bool:
        """Return whether a sample is on this machine."""
        return self._copy.has(position)

    def release(self) -> None:
        self._copy.release()

    def _read_places(self) -> list[tuple[int, int]]:
        size, samples = self._entry.bytes, self._entry.samples
        try:
            start = max(size - _FIRST_GUESS, 0)
            self._copy.fill(samples, start, size, self._range)
            footer = size - footer_bytes(self._copy.read(max(size - TAIL_BYTES, 0), size))
            if footer < start:
                self._copy.fill(samples + 1, max(footer, 0), size, self._range)
            return batch_places(self._copy.read(max(footer, 0), size), size)
        except ValueError as error:
            raise CorruptError(f"{self._mirror.url.joined(self._entry.path)}: unreadable ({error})") from None

    def _range(self, start: int, stop: int) -> bytes:
        return self._mirror.store.read_range(self._entry.path, start, stop)


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample of a cache in a store."""

    folder: Path
    entry: ShardEntry
    position: int
    num_bytes: int  # about
    bound_bytes: int

    @property
    def key(self) -> tuple[Path, int]:
        return self.folder / self.entry.path, self.position

    def fetch(self) -> None:
        """Bring it to this machine, unless it is there; raises what `PiecewiseShard.fetch` does."""
        mirror = mirror_of(self.folder)
        assert mirror is not None
        shard = PiecewiseShard(mirror, self.entry)
        try:
            shard.fetch(self.position)
        finally:
            shard.release()
