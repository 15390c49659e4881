"""A batch as a trainer of block drafts takes it, and the labels and distributions of its guesses.

Symbols: B rows, T slots, S rows of targets, R guesses, D draft vocabulary, V target vocabulary.
"""

from dataclasses import dataclass, replace

import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows
from eaglepipe.eagle.packed_batch import PackedBatch, check_shape
from eaglepipe.eagle.peagle.loss import target_entropies
from eaglepipe.eagle.unroll.checks import check_batch
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets
from eaglepipe.errors import DraftError


@dataclass(frozen=True, kw_only=True)
class BlockInputs:
    """A batch with what the target computed for it; distributions only if a loss reads them."""

    batch: PackedBatch
    aux_hidden_states: torch.Tensor  # [B, T, A·Ht]
    target_top1: torch.Tensor  # int64 [B, T], the target's likeliest token, of all V; -1 where nothing is supervised
    target_probs: torch.Tensor | SparseTargets | None = None  # S rows, of the slots set in `loss_mask`, row by row
    draft_mass: torch.Tensor | None = None  # float32 [S]; None: all of the distribution is in the draft vocabulary

    def prepared(self) -> "BlockInputs":
        """Detach the targets, and fetch masks and the layout of sparse targets unless they travel with the batch."""
        batch, targets = self.batch, self.target_probs
        if isinstance(targets, torch.Tensor):
            targets = targets.detach()
        elif targets is not None:
            targets = targets.with_layout()
        return replace(self, batch=replace(batch, host_copy=batch.on_host()), target_probs=targets)

    def check(self, *, width: int, needs_probs: bool, normalizers: torch.Tensor | None, depths: int) -> None:
        """Check shapes and masks.

        Raises:
            DraftError: naming the argument.
        """
        host = self.batch.on_host()
        check_batch(host)
        check_shape("normalizers", normalizers, (depths,))
        check_shape("aux_hidden_states", self.aux_hidden_states, (*host.shape, width))
        check_shape("target_top1", self.target_top1, host.shape)
        if not needs_probs:
            return
        if self.target_probs is None:
            raise DraftError("kl and tv read the target's distributions: give target_probs too")
        is_dense = isinstance(self.target_probs, torch.Tensor)
        num_rows = len(self.target_probs) if is_dense else len(self.target_probs.tail)  # type: ignore[union-attr,arg-type]
        num_slots = int(host.loss_mask.sum())
        if num_rows != num_slots:
            raise DraftError(f"target_probs has {num_rows} rows; loss_mask has {num_slots} slots set")
        if self.draft_mass is not None:
            check_shape("draft_mass", self.draft_mass, (num_slots,))


@dataclass(frozen=True, kw_only=True)
class TeacherRows:
    """S rows of the target's distribution, and where each slot's is."""

    rows: DenseRows | SparseRows
    row_of_slot: torch.Tensor  # int64 [B·T]
    entropies: torch.Tensor  # float32 [S]
    draft_mass: torch.Tensor  # float32 [S]


def look_up_teacher(inputs: BlockInputs, draft_size: int) -> TeacherRows | None:
    """Return the distributions of a batch; None if there are none."""
    targets = inputs.target_probs
    if targets is None:
        return None
    row_of_slot = inputs.batch.on_host().loss_mask.flatten().long().cumsum(0) - 1
    entropies = target_entropies(targets, draft_size)
    mass = torch.ones_like(entropies) if inputs.draft_mass is None else inputs.draft_mass.float()
    return TeacherRows(
        rows=DenseRows(probs=targets) if isinstance(targets, torch.Tensor) else SparseRows.of(targets),
        row_of_slot=row_of_slot.to(inputs.batch.device),
        entropies=entropies,
        draft_mass=mass,
    )
