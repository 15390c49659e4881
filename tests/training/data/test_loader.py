import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CorruptError, ResourceError
from eaglepipe.training.data import loader as loader_module
from eaglepipe.training.data.batch import DataPosition, EncodedBatch, PackingLimits, StepPlan
from eaglepipe.training.data.collate import PackedDocuments
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.order import SampleOrder
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.eagle3 import draw_slots
from eaglepipe.training.objectives.interface import BatchDraw
from tests.training.tiny_source import TinySource, tiny_source

CPU = torch.device("cpu")


def plans(source: TinySource, epochs: int = 1) -> Iterator[StepPlan]:
    order = SampleOrder(
        samples=np.arange(len(source.samples)),
        num_tokens=source.index.num_tokens,
        identity=source.identity,
        seed=0,
        epochs=epochs,
        batch_tokens=48,
    )
    limits = PackingLimits(pack_length=16, micro_batch_tokens=32)
    return plan_steps(order, order.num_tokens.astype(np.float64), limits=limits, start=DataPosition())


def open_loader(source: TinySource, **changes: object) -> Loader:
    settings = {"draw": draw_slots(3), "device": CPU, "prefetch_batches": 2, **changes}
    return Loader(source, plans(source), **settings)


def test_counts_that_precede_a_step_are_those_of_its_batches() -> None:
    source = tiny_source()
    with open_loader(source) as loader:
        for header, batches in loader:
            loaded = list(batches)
            expected = torch.zeros(3, dtype=torch.int64)
            for batch in loaded:
                expected += brute_force_counts(batch, 3)
            assert header.counts.tolist() == expected.tolist()
            assert header.num_tokens == source.index.num_tokens[header.plan.samples].sum()
            assert header.num_slots == sum(batch.packed.input_ids.numel() for batch in loaded)


def brute_force_counts(batch: EncodedBatch, ttt_steps: int) -> torch.Tensor:
    counts = torch.zeros(ttt_steps, dtype=torch.int64)
    mask = batch.packed.position_mask
    rows, slots = mask.shape
    for step in range(ttt_steps):
        for row in range(rows):
            for slot in range(slots - step):
                counts[step] += bool(mask[row, slot + step]) and step < int(batch.packed.doc_remaining[row, slot])
    return counts


def test_every_sample_is_read_once_an_epoch_with_its_own_payload() -> None:
    source = tiny_source()
    expected = sorted(bytes(sample.aux_payload) for sample in source.samples)
    found = []
    with open_loader(source) as loader:
        for _, batches in loader:
            for batch in batches:
                found += [bytes(row.numpy()) for row in documents_of(batch)]
    assert sorted(found) == expected


def documents_of(batch: EncodedBatch) -> Iterator[torch.Tensor]:
    aux = batch.aux_payload.reshape(*batch.packed.shape, -1)
    for row, remaining, real in zip(aux, batch.packed.doc_remaining, batch.packed.attention_mask, strict=True):
        ends = ((remaining == 0) & real).nonzero().flatten().tolist()
        for start, end in zip([0, *(e + 1 for e in ends)], ends, strict=False):
            yield row[start : end + 1].contiguous()


@dataclass(frozen=True, kw_only=True)
class Failing(TinySource):
    error: BaseException

    def read(self, i: int, /) -> CachedSample:
        if i == 5:
            raise self.error
        return super().read(i)


def failing(error: BaseException) -> Failing:
    source = tiny_source()
    return Failing(**{name: getattr(source, name) for name in source.__dataclass_fields__}, error=error)


def consume(loader: Loader) -> None:
    with loader:
        for _, batches in loader:
            list(batches)


def test_a_corrupt_sample_stops_the_loop_with_the_cache_s_own_words() -> None:
    with pytest.raises(CorruptError, match="shard 3, sample 5"):
        consume(open_loader(failing(CorruptError("shard 3, sample 5: checksum"))))


def test_running_out_of_memory_in_the_thread_names_the_knobs() -> None:
    with pytest.raises(ResourceError, match=r"tiny:5.*prefetch_batches"):
        consume(open_loader(failing(MemoryError())))


def test_an_unexpected_error_says_what_was_being_read() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        consume(open_loader(failing(ZeroDivisionError())))
    assert "tiny:5" in caught.value.__notes__[0]


@dataclass(frozen=True, kw_only=True)
class Stalling(TinySource):
    gate: threading.Event

    def read(self, i: int, /) -> CachedSample:
        self.gate.wait()
        return super().read(i)


def test_a_stalled_read_is_reported_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "STALL_SECONDS", 0.5)
    source, gate, messages = tiny_source(), threading.Event(), []
    stalling = Stalling(**{name: getattr(source, name) for name in source.__dataclass_fields__}, gate=gate)

    def warn(message: str) -> None:
        messages.append(message)
        gate.set()

    loader = open_loader(stalling, warn=warn)
    consume(loader)
    assert "reading sample 'tiny:" in messages[0] and "slow" in messages[0]
    assert loader.waited_seconds > 0.5


def test_leaving_early_ends_the_thread() -> None:
    source = replace(tiny_source(), identity="other")
    loader = open_loader(source)
    with loader:
        next(iter(loader))
    assert not loader._thread.is_alive()


def test_what_an_objective_draws_travels_with_its_batch() -> None:
    """By sample id and epoch, here: the same document gets the same draw however the step is cut."""

    def draw(packed: PackedDocuments, epoch: int) -> BatchDraw:
        names = [int(document.sample_id.split(":")[1]) + 100 * epoch for row in packed.documents for document in row]
        return BatchDraw(counts=torch.tensor([len(names), sum(names)]), extras={"names": torch.tensor(names)})

    source = tiny_source()
    with open_loader(source, draw=draw) as loader:
        for header, batches in loader:
            drawn = torch.cat([batch.extras["names"] for batch in batches]).tolist()
            assert sorted(drawn) == sorted(int(sample) for sample in header.plan.samples)
            assert header.counts.tolist() == [len(drawn), sum(drawn)]


def test_a_rank_without_documents_counts_nothing() -> None:
    source = tiny_source()
    empty = StepPlan(samples=np.arange(0), micro_batches=(), after=DataPosition())
    settings = {"draw": draw_slots(3), "device": CPU, "prefetch_batches": 2}
    with Loader(source, [empty], **settings) as loader:
        ((header, batches),) = ((header, list(batches)) for header, batches in loader)
    assert header.counts.tolist() == [0, 0, 0] and batches == []


@pytest.mark.parametrize("supervision", ["hidden", "sparse"])
def test_host_copies_that_travel_are_those_that_the_trainer_would_fetch(supervision: str) -> None:
    source = tiny_source(supervision=supervision)
    decoder = SupervisionDecoder(source, device=CPU, dtype=torch.float32)
    with open_loader(source) as loader:
        for _, batches in loader:
            for batch in batches:
                moved = batch.to(torch.device("meta")).packed
                assert moved.device.type == "meta" and moved.on_host() is batch.packed
                if supervision == "hidden":
                    assert batch.sparse_layout is None
                    continue
                targets = decoder.decode(batch).target_probs
                fetched = replace(targets, layout=None).with_layout().layout
                assert targets.layout is batch.sparse_layout is not None
                for name, expected in vars(fetched).items():
                    assert torch.equal(getattr(targets.layout, name), expected), name
