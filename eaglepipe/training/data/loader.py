"""Reading ahead of the training loop: a background thread maps, checks, copies once and moves batches to the device.

The order comes from the plan, so the number of copying threads changes nothing; an error in the thread is raised again
in the loop, and a read that stalls is reported instead of hanging in silence.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from eaglepipe.cache.types import CachedSample
from eaglepipe.eagle.sequence_share import SequenceShare
from eaglepipe.errors import CorruptError, EaglepipeError, ResourceError
from eaglepipe.training.data.ahead import fetched_ahead
from eaglepipe.training.data.batch import BatchColumns, EncodedBatch, Row, SampleSource, StepHeader, StepPlan
from eaglepipe.training.data.buffers import BufferPool
from eaglepipe.training.data.collate import PackedDocuments, encode_batch, pack_documents, sparse_layout
from eaglepipe.training.objectives.interface import BatchDraw, DrawFn

STALL_SECONDS = 30.0
MAX_COPY_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A batch on the device, and the event after which the loop's stream may read it."""

    batch: EncodedBatch
    ready: torch.cuda.Event | None


Item = StepHeader | _Loaded | BaseException | None
"""None: the plan is exhausted."""


class Loader:
    """Steps in the order of a plan, loaded in the background; use as a context manager.

    `buffers` are those of an earlier loader, whose pages are in memory already. `waited_seconds` grows by the time in
    which the consumer had nothing to do.
    """

    def __init__(
        self,
        source: SampleSource,
        plans: Iterable[StepPlan],
        *,
        draw: DrawFn,
        device: torch.device,
        prefetch_batches: int,
        columns: BatchColumns = BatchColumns(),  # noqa: B008 - frozen
        buffers: BufferPool | None = None,
        warn: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True),
    ) -> None:
        self.waited_seconds = 0.0
        self._source, self._plans, self._draw, self._device = source, plans, draw, device
        self._warn, self._columns = warn, columns
        self._buffers = BufferPool() if buffers is None else buffers
        self._queue: queue.Queue[Item] = queue.Queue(maxsize=prefetch_batches)
        self._stopping = threading.Event()
        self._doing = "starting"
        self._thread = threading.Thread(target=self._produce, name="eaglepipe-loader", daemon=True)

    def __enter__(self) -> "Loader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=STALL_SECONDS)

    def __iter__(self) -> Iterator[tuple[StepHeader, Iterator[EncodedBatch]]]:
        """Yield each step's header and its micro-batches, which must be used up before the next step is asked for.

        Raises:
            CorruptError, ResourceError: the reading thread stopped.
        """
        while (item := self._next()) is not None:
            assert isinstance(item, StepHeader), "the micro-batches of the step before were not used up"
            yield item, self._batches(len(item.plan.micro_batches))

    def _batches(self, count: int) -> Iterator[EncodedBatch]:
        for _ in range(count):
            item = self._next()
            assert isinstance(item, _Loaded)
            if item.ready is not None:
                torch.cuda.current_stream().wait_event(item.ready)
                for tensor in item.batch.tensors():
                    tensor.record_stream(torch.cuda.current_stream())
            yield item.batch

    def _next(self) -> Item:
        asked = time.monotonic()
        warned = asked
        while True:
            try:
                item = self._queue.get(timeout=1.0)
                break
            except queue.Empty:
                now = time.monotonic()
                if not self._thread.is_alive() and self._queue.empty():
                    raise ResourceError(f"the loading thread died while {self._doing}") from None
                if now - warned >= STALL_SECONDS:
                    self._warn(f"waiting for data since {now - asked:.0f} s: {self._doing}; is the storage slow?")
                    warned = now
        self.waited_seconds += time.monotonic() - asked
        if isinstance(item, BaseException):
            raise item
        return item

    def _produce(self) -> None:
        try:
            with ThreadPoolExecutor(min(MAX_COPY_THREADS, os.cpu_count() or 1), "eaglepipe-copy") as pool:
                stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
                for plan in fetched_ahead(self._source, self._plans):
                    for item in self._load_step(plan, pool, stream):
                        if not self._put(item):
                            return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - re-raised in the loop, with what was being done
            self._put(_with_context(error, self._doing))

    def _put(self, item: Item) -> bool:
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _load_step(
        self, plan: StepPlan, pool: ThreadPoolExecutor, stream: torch.cuda.Stream | None
    ) -> Iterator[StepHeader | _Loaded]:
        packed = [self._pack(rows, plan.share) for rows in plan.micro_batches]
        drawn = [self._draw(documents, plan.after.epoch) for documents in packed]
        nothing = self._draw(pack_documents(()), plan.after.epoch)
        yield StepHeader(
            plan=plan,
            counts=sum((one.counts for one in drawn), nothing.counts),
            num_tokens=sum(documents.count("attention_mask") for documents in packed),
            num_supervised=sum(documents.count("loss_mask") for documents in packed),
            num_slots=sum(int(documents.batch.owned.sum()) for documents in packed),
        )
        while packed:
            yield self._load(packed.pop(0), drawn.pop(0), pool, stream)

    def _pack(self, rows: tuple[Row, ...], share: SequenceShare | None) -> PackedDocuments:
        return pack_documents(tuple(tuple(self._read(sample) for sample in row) for row in rows), share)

    def _read(self, sample: int) -> CachedSample:
        self._doing = f"reading sample {self._source.index.sample_ids[sample]!r}"
        return self._source.read(sample)

    def _load(
        self, packed: PackedDocuments, drawn: BatchDraw, pool: ThreadPoolExecutor, stream: torch.cuda.Stream | None
    ) -> _Loaded:
        self._doing = f"copying sample {packed.documents[0][0].sample_id!r} and those packed with it"
        copies: list[Future[None]] = []
        batch = encode_batch(
            packed,
            pinned=stream is not None,
            run=lambda copy: copies.append(pool.submit(copy)),
            pool=self._buffers,
            columns=self._columns,
            extras=drawn.extras,
        )
        for copied in copies:
            copied.result()
        batch = replace(batch, sparse_layout=sparse_layout(batch.supervision))
        if stream is None:
            return _Loaded(batch=batch, ready=None)
        with torch.cuda.stream(stream):
            moved = batch.to(self._device)
            ready = torch.cuda.Event()
            ready.record(stream)
        return _Loaded(batch=moved, ready=ready)


def _with_context(error: BaseException, doing: str) -> BaseException:
    if isinstance(error, EaglepipeError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"out of memory while {doing}; lower train.prefetch_batches or train.micro_batch_tokens")
    if isinstance(error, OSError):
        return CorruptError(f"{doing}: {error}")
    error.add_note(f"in the loading thread, while {doing}")
    return error
