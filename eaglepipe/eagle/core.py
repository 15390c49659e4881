"""EAGLE-3 training: the draft unrolled K steps on its own states, against the target's distribution at every step."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from eaglepipe.eagle.losses import CROSS_ENTROPY, StepLoss
from eaglepipe.eagle.packed_batch import (
    PackedBatch,
    as_slot_mask,
    check_shape,
    count_slots,
    shift_left_with_zero,
    step_masks,
)
from eaglepipe.eagle.sequence_share import SequenceGroup
from eaglepipe.eagle.unroll.checks import (
    check_inputs,
    check_loss_inputs,
    check_settings,
    check_supervision_source,
    check_vocabulary,
)
from eaglepipe.eagle.unroll.chunk_plan import plan_chunks
from eaglepipe.eagle.unroll.chunked import unroll_chunked
from eaglepipe.eagle.unroll.compact import unroll_compact
from eaglepipe.eagle.unroll.drafts import check_methods, is_plain
from eaglepipe.eagle.unroll.interface import LossSettings, TrainerInputs, UnrollResult, none_yet
from eaglepipe.eagle.unroll.reference import unroll_reference
from eaglepipe.eagle.unroll.slot_plan import plan_unroll
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.errors import DraftError
from eaglepipe.target_head import compute_draft_mass, target_distribution

__all__ = [
    "Eagle3StepMetrics",
    "Eagle3TrainerModule",
    "SparseTargets",
    "_compute_target_distribution",
    "_shift_left_with_zero",
    "count_valid_per_step",
]

_shift_left_with_zero = shift_left_with_zero
_compute_target_distribution = target_distribution


@dataclass(frozen=True)
class Eagle3StepMetrics:
    """Aggregated metrics of one forward; K steps. Only `loss` carries a gradient."""

    loss: torch.Tensor  # float32, sum_k decay^k L_k / sum_k decay^k
    accuracy: torch.Tensor  # float32, correct over counted slots, all steps pooled
    valid_tokens: torch.Tensor  # int64, slots in the loss, all steps pooled
    loss_sums: torch.Tensor = field(default_factory=none_yet)  # float32 [K], summed loss of the slots
    counts: torch.Tensor = field(default_factory=none_yet)  # int64 [K], slots in the loss
    correct: torch.Tensor = field(default_factory=none_yet)  # int64 [K], greedy draft token equal to the target's
    hits: torch.Tensor = field(default_factory=none_yet)  # int64 [K], slots whose first k+1 greedy drafts all match
    valid: torch.Tensor = field(default_factory=none_yet)  # int64 [K], slots supervised at every step up to k
    alpha_sums: torch.Tensor = field(default_factory=none_yet)  # as in `UnrollResult`
    sampled_hits: torch.Tensor = field(default_factory=none_yet)  # likewise


class Eagle3TrainerModule(nn.Module):
    """Draft-side EAGLE-3 trainer module with test-time-training unroll.

    Args:
        draft_model: the draft: a `LlamaEagle3DraftModel`, or any module with `project_hidden_states` (aux states
            [B, T, A·Ht] -> [B, T, H]), `forward` (ids and carried state of a step -> the state to carry) and
            `compute_logits` ([B, T, H] -> [B, T, D]), which goes through the reference unroll. See `first_step`.
        selected_token_ids: int64 [D], ascending target ids of the draft vocabulary.
        selected_token_mask: bool [V], True for those ids.
        ttt_steps: K, an int of at least 1.
        step_decay: weight of step k is step_decay^k, in (0, 1].
        implementation: `compact` computes only the slots that a loss depends on, `reference` every slot at every step;
            losses and gradients are the same. A draft of another class is always unrolled as `reference`.
        head_chunk_rows: rows whose logits the compact implementation holds at once; None: as many as suit the device.
        loss: what a step minimises.
        chunk_slots: slots that the compact implementation takes through all steps before it turns to the next ones,
            so that activations of more do not exist; None: all. Loss `lambda` is chunked with `mean_alphas` only.
        sequence: the processes that share each batch, every one with its `PackedBatch.share`.

    Raises:
        DraftError: for settings that do not fit together, or a draft that processes cannot share.
    """

    selected_token_ids: torch.Tensor
    selected_token_mask: torch.Tensor
    step_weights: torch.Tensor

    def __init__(
        self,
        draft_model: nn.Module,
        selected_token_ids: torch.Tensor,
        selected_token_mask: torch.Tensor,
        ttt_steps: int,
        *,
        step_decay: float = 0.8,
        implementation: Literal["compact", "reference"] = "compact",
        head_chunk_rows: int | None = None,
        loss: StepLoss = CROSS_ENTROPY,
        chunk_slots: int | None = None,
        sequence: SequenceGroup | None = None,
    ) -> None:
        super().__init__()
        check_settings(ttt_steps=ttt_steps, step_decay=step_decay, implementation=implementation, loss=loss)
        check_methods(draft_model)
        check_vocabulary(getattr(draft_model, "config", None), selected_token_ids, selected_token_mask)
        self.loss = loss
        self.chunk_slots = chunk_slots
        self.draft_model: Any = draft_model
        self.ttt_steps = ttt_steps
        self.implementation = implementation
        self.head_chunk_rows = head_chunk_rows
        weights = torch.tensor([step_decay**step for step in range(ttt_steps)], dtype=torch.float64)
        self.register_buffer("selected_token_ids", selected_token_ids.long(), persistent=False)
        self.register_buffer("selected_token_mask", selected_token_mask.bool(), persistent=False)
        self.register_buffer("step_weights", (weights / weights.sum()).float(), persistent=False)
        self.sequence: SequenceGroup | None = None
        if sequence is not None:
            self.share_with(sequence)

    def share_with(self, group: SequenceGroup) -> None:
        """Share all batches with other processes, from now on.

        Raises:
            DraftError: the draft's slots cannot be computed apart.
        """
        if self.implementation == "reference" or not is_plain(self.draft_model):
            raise DraftError(
                "processes can share the rows of a Llama draft with its own layers alone, in the compact "
                f"implementation, not those of this {type(self.draft_model).__name__}: give each process rows of its "
                "own (train.sequence_parallel 1)"
            )
        self.sequence = group

    def forward(  # noqa: PLR0917 - the established signature
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        loss_mask: torch.Tensor,
        aux_hidden_states: torch.Tensor,
        target_logits: torch.Tensor | None = None,
        target_probs: torch.Tensor | SparseTargets | None = None,
        position_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        seq_lens: torch.Tensor | None = None,
        doc_remaining: torch.Tensor | None = None,
        *,
        normalizers: torch.Tensor | None = None,
        draft_mass: torch.Tensor | None = None,
        mean_alphas: torch.Tensor | None = None,
    ) -> Eagle3StepMetrics:
        """Return `compute_loss` of tensors given one by one; ids, masks and supervision are shifted left once already.

        Exactly one supervision source: `target_logits`, or `target_probs` with `position_mask`.

        Args:
            input_ids, attention_mask, loss_mask, position_mask, position_ids, seq_lens, doc_remaining: the fields of
                `PackedBatch`, of any integer dtype, masks also [B, T, 1]; absent ones as `PackedBatch.of` fills them.
            target_logits: [B, T, V].
            aux_hidden_states, target_probs, draft_mass: the fields of `TrainerInputs`; `draft_mass` with an LK loss.
            normalizers, mean_alphas: as `compute_loss` takes them.

        Raises:
            DraftError: for no or two supervision sources, and for shapes or masks that do not fit.
        """
        check_supervision_source(target_logits, target_probs, position_mask)
        if self.loss.needs_mass and target_logits is not None and draft_mass is not None:
            raise DraftError("draft_mass goes with target_probs; with target_logits it follows from them")
        batch = PackedBatch.of(
            input_ids, attention_mask, loss_mask, position_mask, position_ids, seq_lens, doc_remaining
        )
        if target_logits is not None:
            batch, target_probs = supervise(batch, target_logits, self.selected_token_ids, self.selected_token_mask)
            draft_mass = compute_draft_mass(target_logits, self.selected_token_ids) if self.loss.needs_mass else None
        assert target_probs is not None
        inputs = TrainerInputs(
            batch=batch, aux_hidden_states=aux_hidden_states, target_probs=target_probs, draft_mass=draft_mass
        )
        return self.compute_loss(inputs, normalizers=normalizers, mean_alphas=mean_alphas)

    def compute_loss(
        self,
        inputs: TrainerInputs,
        *,
        normalizers: torch.Tensor | None = None,
        mean_alphas: torch.Tensor | None = None,
    ) -> Eagle3StepMetrics:
        """Compute the loss and metrics of one batch.

        Args:
            inputs: compact target rows are those of the slots set in `position_mask`. Without host copies the masks are
                fetched from the device, and the host waits for it.
            normalizers: [K], the divisors of the steps' loss sums; default their own counts, at least 1. Larger numbers
                give one batch its share of a loss that is reduced over several.
            mean_alphas: [K], each step's mean alpha, from which `lambda` makes its weight; default this batch's own.
                A batch that is a share of a larger one needs those of the whole.

        Raises:
            DraftError: for shapes or masks that do not fit.
        """
        inputs = inputs.prepared()
        check_inputs(
            getattr(self.draft_model, "config", None),
            inputs,
            draft_size=len(self.selected_token_ids),
            normalizers=normalizers,
            num_steps=self.ttt_steps,
        )
        check_loss_inputs(self.loss, inputs, mean_alphas=mean_alphas, normalizers=normalizers, num_steps=self.ttt_steps)
        batch = inputs.batch
        counts = count_slots(batch.covered_steps(self.ttt_steps))
        divisors = counts.clamp(min=1) if normalizers is None else normalizers.to(self.step_weights)
        settings = LossSettings(
            step_weights=self.step_weights / divisors,
            loss=self.loss,
            mean_alphas=None if mean_alphas is None else mean_alphas.to(self.step_weights),
        )
        result = self._unroll(inputs, settings)
        return Eagle3StepMetrics(
            accuracy=result.correct.sum().float() / counts.sum().clamp(min=1),
            valid_tokens=counts.sum(),
            counts=counts,
            valid=count_slots(batch.supervised_chains(self.ttt_steps)),
            **vars(result),
        )

    def _unroll(self, inputs: TrainerInputs, settings: LossSettings) -> UnrollResult:
        batch = inputs.batch
        if (batch.share is None) != (self.sequence is None):
            raise DraftError("a batch's share and the trainer's sequence group go together; give both or neither")
        if self.implementation == "reference" or not is_plain(self.draft_model):
            draft_size = len(self.selected_token_ids)
            return unroll_reference(self.draft_model, inputs.decoded(), settings, draft_size=draft_size)
        host, compact = batch.on_host(), inputs.has_compact_rows
        if self._in_chunks(batch, settings):
            plan = plan_chunks(
                host,
                self.ttt_steps,
                chunk_slots=self.chunk_slots or batch.input_ids.numel(),
                probs_are_compact=compact,
                device=batch.device,
            )
            rows = self.head_chunk_rows
            return unroll_chunked(self.draft_model, inputs, settings, plan, head_chunk_rows=rows, group=self.sequence)
        whole = plan_unroll(host, self.ttt_steps, probs_are_compact=compact, device=batch.device)
        inputs = inputs.decoded()
        return unroll_compact(self.draft_model, inputs, settings, whole, head_chunk_rows=self.head_chunk_rows)

    def _in_chunks(self, batch: PackedBatch, settings: LossSettings) -> bool:
        needs_whole = settings.loss.kind == "lambda" and settings.mean_alphas is None
        if batch.share is not None:
            if needs_whole:
                raise DraftError("a share of a batch with loss lambda needs the mean_alphas of the whole")
            return True
        return self.chunk_slots is not None and batch.input_ids.numel() > self.chunk_slots and not needs_whole


def supervise(
    batch: PackedBatch, target_logits: torch.Tensor, selected_token_ids: torch.Tensor, selected_token_mask: torch.Tensor
) -> tuple[PackedBatch, torch.Tensor]:
    """Return a batch with the position mask that logits [B, T, V] decide, and its target probabilities [B, T, D].

    Raises:
        DraftError: for logits of another shape.
    """
    check_shape("target_logits", target_logits, (*batch.shape, len(selected_token_mask)))
    probs, covered = target_distribution(target_logits, selected_token_ids, selected_token_mask, batch.loss_mask)
    return replace(batch, position_mask=as_slot_mask(covered)), probs


def count_valid_per_step(
    position_mask: torch.Tensor, doc_remaining: torch.Tensor | None, ttt_steps: int
) -> torch.Tensor:
    """Count the slots in the loss of each step, as `Eagle3TrainerModule.forward` will report them.

    Args:
        position_mask: [B, T] or [B, T, 1], any dtype, shifted once as the trainer takes it.
        doc_remaining: [B, T] or None.

    Returns: int64 [K].
    """
    return count_slots(step_masks(as_slot_mask(position_mask), doc_remaining, ttt_steps))
