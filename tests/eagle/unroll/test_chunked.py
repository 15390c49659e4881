"""Rows in chunks, and rows that several processes share, against the reference unroll of the whole."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.eagle.losses import StepLoss
from eaglepipe.eagle.sequence_share import SequenceShare
from eaglepipe.eagle.unroll.interface import EncodedTargets, TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.errors import DraftError
from tests.eagle.toy_drafts import DRAFT_SIZE, gradients, make_document, make_draft, make_trainer, packed, packed_batch
from tests.eagle.unroll.test_ttt_unroll import assert_same_gradients

SUMS = ("loss_sums", "counts", "valid", "correct", "hits", "alpha_sums", "sampled_hits")


@dataclass
class Threads:
    """A `SequenceGroup` of threads, which exchange rows through a list."""

    size: int
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)

    def member(self, rank: int) -> "Member":
        return Member(threads=self, rank=rank)


@dataclass
class Member:
    threads: Threads
    rank: int

    @property
    def size(self) -> int:
        return self.threads.size

    def _exchange(self, rows: torch.Tensor, combine: Callable[[list[torch.Tensor]], torch.Tensor]) -> torch.Tensor:
        self.threads.rows[self.rank] = rows
        self.threads.barrier.wait()
        result = combine([self.threads.rows[rank] for rank in range(self.size)])
        self.threads.barrier.wait()
        return result

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self._exchange(rows, torch.cat)

    def sum_and_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        return self._exchange(rows, lambda parts: torch.stack(parts).sum(0).chunk(self.size)[self.rank].clone())


def make_inputs(batch: dict[str, Any], *, mass: bool = False) -> TrainerInputs:
    """Targets as rows of the covered slots, as a training batch has them."""
    masks = packed_batch(batch)
    probs = batch["target_probs"][masks.position_mask]
    draft_mass = torch.linspace(0.5, 1.0, len(probs)) if mass else None
    return TrainerInputs(
        batch=masks, aux_hidden_states=batch["aux_hidden_states"], target_probs=probs, draft_mass=draft_mass
    )


def own_part(inputs: TrainerInputs, share: SequenceShare) -> TrainerInputs:
    batch = inputs.batch
    read = share.read(batch.shape)[batch.position_mask]
    assert isinstance(inputs.target_probs, torch.Tensor)
    return TrainerInputs(
        batch=replace(batch, share=share),
        aux_hidden_states=inputs.aux[share.owned(batch.shape)],
        target_probs=inputs.target_probs[read],
        draft_mass=None if inputs.draft_mass is None else inputs.draft_mass[read],
    )


def shared_unroll(draft, inputs, ttt_steps, *, size, least_block, normalizers, mean_alphas=None, **keywords):
    """Run every process in a thread with a draft of its own; returns summed metrics and gradients."""
    threads = Threads(size)

    def work(rank: int) -> tuple[Any, dict[str, torch.Tensor]]:
        own = copy.deepcopy(draft).train()
        share = SequenceShare(rank=rank, size=size, reach=ttt_steps - 1, least_block=least_block)
        trainer = make_trainer(own, ttt_steps, sequence=threads.member(rank), **keywords)
        part = own_part(inputs, share)
        metrics = trainer.compute_loss(part, normalizers=normalizers, mean_alphas=mean_alphas)
        return metrics, gradients(own, metrics.loss)

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(work, range(size)))
    metrics = [result[0] for result in results]
    sums = {name: sum(getattr(part, name) for part in metrics) for name in ("loss", *SUMS)}
    names = results[0][1]
    return sums, {name: sum(result[1].get(name, 0) for result in results) for name in names}


def assert_equal(found: dict[str, torch.Tensor], found_gradients, expected, expected_gradients) -> None:
    torch.testing.assert_close(found["loss"], expected.loss.detach(), rtol=1e-6, atol=0, check_dtype=False)
    for name in SUMS:
        torch.testing.assert_close(found[name], getattr(expected, name), rtol=2e-6, atol=0)
    assert_same_gradients(found_gradients, expected_gradients, 1e-5)


SHAPES = [
    {},
    {"num_hidden_layers": 3, "norm_output": True, "fc_norm": True},
    {"num_hidden_layers": 2, "norm_before_residual": True, "qk_norm": True, "sliding_window": 9},
]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    supervised=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    ttt_steps=st.integers(1, 5),
    shape=st.sampled_from(SHAPES),
    chunk_slots=st.sampled_from([7, 24]),
    size=st.integers(1, 3),
)
def test_chunks_and_shares_of_any_packing_give_the_reference(lengths, supervised, ttt_steps, shape, chunk_slots, size):
    documents = [make_document(length, seed, supervised) for seed, length in enumerate(lengths)]
    half = (len(documents) + 1) // 2
    rows = [documents[:half], documents[half:]] if len(documents) > 1 else [documents]
    inputs = make_inputs(packed(rows, num_slots=max(sum(map(len, row)) for row in rows) + 3))
    draft = make_draft(**shape).train()
    expected = make_trainer(draft, ttt_steps, implementation="reference").compute_loss(inputs)
    expected_gradients = gradients(draft, expected.loss)
    if size == 1:
        metrics = make_trainer(draft, ttt_steps, chunk_slots=chunk_slots).compute_loss(inputs)
        found = {name: getattr(metrics, name) for name in ("loss", *SUMS)}, gradients(draft, metrics.loss)
    else:
        normalizers = expected.counts.clamp(min=1)
        found = shared_unroll(
            draft, inputs, ttt_steps, size=size, least_block=5, normalizers=normalizers, chunk_slots=chunk_slots
        )
    assert_equal(*found, expected, expected_gradients)


@pytest.mark.parametrize("form", ["sparse", "encoded", "checkpointed"])
def test_chunks_take_their_targets_in_every_form(form):
    document, draft = make_document(90, 3), make_draft().train()
    inputs = make_inputs(packed([[document, make_document(30, 4)]], 125))
    probs = inputs.target_probs
    assert isinstance(probs, torch.Tensor)
    decoded = []
    if form == "sparse":
        kept = probs > 0.02
        kept[:, 0] = True
        sparse = SparseTargets(
            probs=probs[kept],
            ids=kept.nonzero()[:, 1],
            row_offsets=torch.cat((torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0))),
            tail=(probs * ~kept).sum(1),
        )
        inputs = replace(inputs, target_probs=sparse)
    expected = make_trainer(draft, 4, implementation="reference").compute_loss(inputs)
    expected_gradients = gradients(draft, expected.loss)
    if form == "encoded":

        def decode(rows: slice) -> torch.Tensor:
            decoded.append(rows.stop - rows.start)
            return probs[rows]

        encoded = EncodedTargets(decode=decode, num_rows=len(probs), draft_size=DRAFT_SIZE)
        inputs = replace(inputs, target_probs=encoded)
    draft.gradient_checkpointing = form == "checkpointed"
    metrics = make_trainer(draft, 4, chunk_slots=16).compute_loss(inputs)
    found = {name: getattr(metrics, name) for name in ("loss", *SUMS)}
    assert_equal(found, gradients(draft, metrics.loss), expected, expected_gradients)
    assert form != "encoded" or (len(decoded) == 8 and max(decoded) <= 16 + 3)


@pytest.mark.parametrize("kind", ["alpha", "lambda"])
@pytest.mark.parametrize("size", [1, 2])
def test_lk_losses_are_those_of_the_whole(kind, size):
    inputs = make_inputs(packed([[make_document(50, 1), make_document(41, 2)]], 91), mass=True)
    draft, loss = make_draft().train(), StepLoss(kind=kind, scale=1.0, decay=3.0)
    means = torch.tensor([0.5, 0.3, 0.2])
    whole = make_trainer(draft, 3, implementation="reference", loss=loss)
    expected = whole.compute_loss(inputs, mean_alphas=means)
    expected_gradients = gradients(draft, expected.loss)
    keywords = {"loss": loss, "chunk_slots": 20}
    if size == 1:
        metrics = make_trainer(draft, 3, **keywords).compute_loss(inputs, mean_alphas=means)
        found = {name: getattr(metrics, name) for name in ("loss", *SUMS)}, gradients(draft, metrics.loss)
    else:
        counts = expected.counts
        found = shared_unroll(
            draft, inputs, 3, size=2, least_block=8, normalizers=counts, mean_alphas=means, **keywords
        )
    assert_equal(*found, expected, expected_gradients)


def test_blocks_divide_every_row_evenly():
    for size in (1, 2, 3, 8):
        owners = SequenceShare(rank=0, size=size, reach=0).owners((2, 65_536))
        counts = torch.bincount(owners[1], minlength=size)
        assert counts.max() - counts.min() <= 65_536 // (16 * size)
        keys = torch.bincount(owners[0], weights=torch.arange(65_536).double(), minlength=size)
        assert (keys.max() - keys.min()) / keys.max() < 0.07


def test_a_share_without_a_group_and_a_draft_that_cannot_be_shared_are_refused():
    inputs = make_inputs(packed([[make_document(20, 1)]], 20))
    share = SequenceShare(rank=0, size=2, reach=3, least_block=4)
    with pytest.raises(DraftError, match="sequence group"):
        make_trainer(make_draft(), 4).compute_loss(own_part(inputs, share))
    with pytest.raises(DraftError, match="rows of its own"):
        make_trainer(make_draft(), 4, implementation="reference", sequence=Threads(2).member(0))
