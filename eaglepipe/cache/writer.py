"""Writing of one shard: samples stream into a temporary file; only `finish` makes it, then its sidecar, visible."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import xxhash

from eaglepipe.cache.manifest import SHARDS_FOLDER, FileEntry, ShardEntry, document_bytes
from eaglepipe.cache.remote.push import make_room, push_shard
from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.cache.samples.record_batch import sample_to_batch
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec, arrow_schema
from eaglepipe.cache.sidecar import RefusedSample, ShardIndex, Sidecar
from eaglepipe.cache.types import CachedSample
from eaglepipe.files.publish import PendingFile, explained_os_errors, publish_bytes

RefusedItem = tuple[str, str]
"""Id of a sample that is left out, and the reason."""
ShardItem = CachedSample | RefusedItem
WrittenSample = tuple[str, int, int, str]
"""Id, tokens, supervised tokens and source."""
Job = Callable[[], Iterable[ShardItem]]
"""Makes some of a shard's samples."""


def shard_path(folder: Path, shard: int) -> Path:
    return folder / SHARDS_FOLDER / f"{shard:05d}.arrow"


def sidecar_path(folder: Path, shard: int) -> Path:
    return folder / SHARDS_FOLDER / f"{shard:05d}.json"


class _HashingSink(io.RawIOBase):
    """A write-only file that hashes its bytes as they pass, so that publishing needs no second read."""

    def __init__(self, pending: PendingFile) -> None:
        self._pending = pending
        self.digest = xxhash.xxh3_128()
        self.num_bytes = 0

    def write(self, data: pa.Buffer | bytes) -> int:
        view = memoryview(data)
        with explained_os_errors(self._pending.path):
            self._pending.stream.write(view)
        self.digest.update(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.num_bytes

    def writable(self) -> bool:
        return True


class ShardWriter:
    """A shard that is being written; without `finish` nothing is published, and `abort` removes the temporary file."""

    def __init__(self, folder: Path, shard: int, *, spec: ShardSpec, identity: str) -> None:
        self._folder, self._shard, self._identity = folder, shard, identity
        self._schema = arrow_schema(spec, identity=identity, shard=shard)
        self._pending = PendingFile(shard_path(folder, shard))
        self._sink = _HashingSink(self._pending)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self._schema)
        self._written: list[WrittenSample] = []
        self._refused: list[RefusedSample] = []

    @property
    def num_bytes(self) -> int:
        return self._sink.num_bytes

    def add(self, item: ShardItem) -> None:
        """Write a sample, or record one that is left out."""
        if isinstance(item, CachedSample):
            self.write(item)
        else:
            self.refuse(*item)

    def write(self, sample: CachedSample) -> None:
        batch, metadata = sample_to_batch(sample, self._schema)
        self._writer.write_batch(batch, custom_metadata=metadata)
        counts = len(sample.input_ids), int(sample.supervised.sum())
        self._written.append((sample.sample_id, *counts, sample.source))

    def refuse(self, sample_id: str, reason: str) -> None:
        """Record a sample that is left out."""
        self._refused.append(RefusedSample(sample_id=sample_id, reason=reason))

    def finish(self) -> Sidecar:
        """Publish the shard, then its sidecar; both in the store, too, if the cache is in one."""
        self._writer.close()
        self._pending.publish(check=partial(_check_batches, expected=len(self._written)))
        path = f"{SHARDS_FOLDER}/{shard_path(self._folder, self._shard).name}"
        file = FileEntry(path=path, bytes=self._sink.num_bytes, xxh3_128=self._sink.digest.hexdigest())
        sidecar = make_sidecar(file, self._identity, self._written, self._refused)
        data = document_bytes(sidecar)
        push_shard(self._folder, file, data)
        publish_bytes(sidecar_path(self._folder, self._shard), data, tidy=False)
        make_room(self._folder, file.bytes)
        return sidecar

    def abort(self) -> None:
        self._pending.abort()


def make_sidecar(
    file: FileEntry, identity: str, written: Sequence[WrittenSample], refused: Sequence[RefusedSample]
) -> Sidecar:
    """Return the sidecar of a shard with these samples, in its order."""
    ids, num_tokens, num_supervised, source_names = zip(*written, strict=True) if written else [()] * 4
    sources = {source: number for number, source in enumerate(dict.fromkeys(source_names))}
    return Sidecar(
        schema_version=SCHEMA_VERSION,
        identity=identity,
        shard=ShardEntry(
            **file.model_dump(), samples=len(ids), tokens=sum(num_tokens), supervised_tokens=sum(num_supervised)
        ),
        refused=tuple(refused),
        index=ShardIndex(
            sample_ids=ids,
            num_tokens=num_tokens,
            num_supervised=num_supervised,
            sources=tuple(sources),
            source_of=tuple(map(sources.__getitem__, source_names)),
        ),
    )


class BackgroundShard:
    """A thread that writes a shard while the target works: it runs jobs that yield samples, in order.

    The queue is bounded: a slow disk slows the target down and never fills the memory.

    Leaving the block without `finish` drops the shard. An exception of the thread is raised at the next call.
    """

    def __init__(self, writer: ShardWriter, *, queue_jobs: int) -> None:
        self._writer, self._queue_jobs = writer, queue_jobs
        self._thread = ThreadPoolExecutor(1, "shard-writer")
        self._jobs: deque[Future[None]] = deque()

    def __enter__(self) -> "BackgroundShard":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._writer.abort()

    def submit(self, job: Job) -> None:
        """Queue one job; blocks while the queue is full."""
        while self._jobs and (self._jobs[0].done() or len(self._jobs) > self._queue_jobs):
            self._jobs.popleft().result()
        self._jobs.append(self._thread.submit(self._write, job))

    def finish(self) -> int:
        """Wait, publish shard and sidecar; returns the shard's bytes."""
        while self._jobs:
            self._jobs.popleft().result()
        return self._writer.finish().shard.bytes

    def _write(self, job: Job) -> None:
        for item in job():
            self._writer.add(item)


def _check_batches(path: Path, *, expected: int) -> None:
    written = ArrowFile(path).num_batches
    assert written == expected, f"{path} holds {written} samples, {expected} were written"
