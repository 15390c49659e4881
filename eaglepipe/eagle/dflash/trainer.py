"""Training of block drafts: drawn blocks in one forward, computed where a guess is supervised.

Context is projected once a slot; slots without a loss skip the last layer's queries, its MLP and the head.
Symbols: B rows, T slots; N blocks of W slots, K guesses, R guesses in the loss; D draft vocabulary, V the target's.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from eaglepipe.eagle.core import Eagle3StepMetrics
from eaglepipe.eagle.dflash.anchors import BlockPart, BlockSettings, draw_blocks, plan_parts
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.dflash.guesses import Guesses, HeadOperands, exponential, guess_losses, position_weights
from eaglepipe.eagle.dflash.inputs import BlockInputs, TeacherRows, look_up_teacher
from eaglepipe.eagle.dflash.losses import BlockLoss
from eaglepipe.eagle.dflash.visibility import BlockVisibility
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.peagle.partitions import PartResult, run_parts
from eaglepipe.eagle.peagle_data import find_documents
from eaglepipe.eagle.peagle_trainer import measure_parts
from eaglepipe.eagle.unroll.checks import check_vocabulary


class DFlashTrainerModule(nn.Module):
    """Draft-side trainer module of block drafts.

    In training, blocks are drawn by seed; in evaluation every supervised slot is an anchor, so that `hits` and `valid`
    are those of the other families.

    Args:
        draft_model: its config gives the block's size and layout.
        selected_token_ids: int64 [D], ascending target ids of the draft vocabulary.
        selected_token_mask: bool [V], True for those ids.
        loss: the terms, and how positions weigh. Weights are not normalised: the divisor counts positions, which are
            known before the forward whatever D-PACE makes of them.
        max_anchors: blocks drawn from a document at most.
        teacher_labels: whether labels are the target's likeliest tokens in the draft vocabulary, not the data's own.
        sequence_partitions: parts that a training batch goes through one after the other, for memory.
        head_chunk_rows: rows whose logits are held at once; None: as many as suit the device.
        eval_slots: about how many block slots an evaluation runs at once.

    Raises:
        DraftError: for a vocabulary that is not the draft's.
    """

    selected_token_ids: torch.Tensor
    selected_token_mask: torch.Tensor
    draft_ids: torch.Tensor  # int64 [V], -1 outside the draft vocabulary
    visibility_class: type[BlockVisibility] = BlockVisibility

    def __init__(
        self,
        draft_model: DFlashDraftModel,
        selected_token_ids: torch.Tensor,
        selected_token_mask: torch.Tensor,
        *,
        loss: BlockLoss,
        max_anchors: int = 512,
        teacher_labels: bool = False,
        sequence_partitions: int = 1,
        head_chunk_rows: int | None = None,
        eval_slots: int = 16384,
    ) -> None:
        super().__init__()
        config = draft_model.config
        check_vocabulary(config, selected_token_ids, selected_token_mask)
        self.draft_model = draft_model
        self.settings = BlockSettings(
            block_size=config.block_size,
            anchor_slots=0 if config.sample_from_anchor else 1,
            max_anchors=max_anchors,
        )
        self.loss = replace(loss, sample_from_anchor=config.sample_from_anchor)
        self.teacher_labels = teacher_labels
        self.sequence_partitions = sequence_partitions
        self.head_chunk_rows = head_chunk_rows
        self.eval_slots = eval_slots
        mask = selected_token_mask.bool()
        self.register_buffer("selected_token_ids", selected_token_ids.long(), persistent=False)
        self.register_buffer("selected_token_mask", mask, persistent=False)
        self.register_buffer("draft_ids", torch.where(mask, mask.long().cumsum(0) - 1, -1), persistent=False)

    @property
    def needs_probs(self) -> bool:
        """Whether batches have to carry the target's distributions."""
        return self.loss.needs_probs or self.teacher_labels

    def compute_loss(
        self,
        inputs: BlockInputs,
        *,
        normalizers: torch.Tensor | None = None,
        anchor_seeds: torch.Tensor | None = None,
    ) -> Eagle3StepMetrics:
        """Compute the loss and metrics of one batch.

        Args:
            inputs: distributions are read only if `needs_probs`.
            normalizers: [K], the divisors of the depths' weighted loss sums; default, for all, the number of guesses in
                the loss. Larger numbers give one batch its share of a loss that is reduced over several.
            anchor_seeds: int64 [B, max_docs], a seed for each document that is not all padding, -1 elsewhere; None
                draws seeds from torch's global generator.

        Raises:
            DraftError: for shapes or masks that do not fit.
        """
        depths = self.settings.depths
        width = self.draft_model.fc.in_features
        inputs.check(width=width, needs_probs=self.needs_probs, normalizers=normalizers, depths=depths)
        inputs = inputs.prepared()
        host = inputs.batch.on_host()
        drawn = draw_blocks(host, self.settings, self._seeds(host, anchor_seeds))
        if normalizers is None:
            normalizers = drawn.counts(depths).sum().clamp(min=1).expand(depths)
        scales = 1.0 / normalizers.to(inputs.batch.device, torch.float32)
        parts = plan_parts(drawn, self.settings, self._num_parts(len(drawn)))
        teacher = look_up_teacher(inputs, self.draft_model.config.draft_vocab_size) if self.needs_probs else None
        run = partial(self._run, inputs, teacher, scales=scales)
        parameters = [parameter for parameter in self.draft_model.parameters() if parameter.requires_grad]
        loss, results = run_parts(run, parts, parameters)
        return measure_parts(inputs.batch, scales.new_zeros(()) if loss is None else loss, results, depths)

    def _seeds(self, host: PackedBatch, anchor_seeds: torch.Tensor | None) -> list[int] | None:
        if not self.training:
            return None
        if anchor_seeds is None:
            anchor_seeds = torch.randint(2**62, (len(find_documents(host)),))
        seeds: list[int] = anchor_seeds[anchor_seeds >= 0].tolist()
        return seeds

    def _num_parts(self, num_blocks: int) -> int:
        if self.training:
            return min(self.sequence_partitions, max(1, num_blocks))
        return max(1, -(-num_blocks * self.settings.block_size // self.eval_slots))

    def _run(
        self, inputs: BlockInputs, teacher: TeacherRows | None, part: BlockPart, *, scales: torch.Tensor
    ) -> PartResult:
        guesses = self._guesses(inputs, teacher, part)
        states = self._states(inputs, part)
        operands = self.head_operands(states, guesses.previous)
        scale = scales[guesses.depths]
        weights = position_weights(self.loss, operands, guesses, chunk_rows=self.head_chunk_rows)
        head, alphas = guess_losses(
            self.loss,
            operands,
            guesses,
            teacher=teacher,
            weights=weights * scale,
            chunk_rows=self.head_chunk_rows,
        )
        fixed = exponential(guesses.depths, self.loss.gamma)
        extra = self.extra_loss(states, guesses.previous, alphas, fixed * scale)
        return PartResult(
            loss=head.loss if extra is None else head.loss + extra,
            slots=guesses.slots,
            depths=guesses.depths,
            losses=head.row_losses,
            matched=(head.predicted == guesses.top1) & inputs.batch.position_mask.flatten()[guesses.references],
        )

    def _guesses(self, inputs: BlockInputs, teacher: TeacherRows | None, part: BlockPart) -> Guesses:
        device, ids = inputs.batch.device, inputs.batch.input_ids.flatten()
        references = part.references.to(device)
        if self.teacher_labels:
            assert teacher is not None
            labels = teacher.rows.top_tokens()[teacher.row_of_slot[references]]
        else:
            labels = self.draft_ids[ids[references + 1]]
        return Guesses(
            slots=part.slots.to(device),
            depths=part.depths.to(device),
            owners=part.owners.to(device),
            references=references,
            previous=ids[references],
            labels=labels,
            top1=self.draft_ids[inputs.target_top1.flatten()[references].clamp(min=0)],
            num_blocks=len(part.blocks),
            num_depths=self.settings.depths,
        )

    def _states(self, inputs: BlockInputs, part: BlockPart) -> torch.Tensor:
        """The draft's states at the guesses in the loss, [R, H]."""
        draft, batch, device = self.draft_model, inputs.batch, inputs.batch.device
        anchors, context = part.blocks.anchors.to(device), part.context.to(device)
        aux, positions = inputs.aux_hidden_states.flatten(0, 1), batch.position_ids.flatten()
        slots = torch.arange(self.settings.block_size, device=device)
        tokens = batch.input_ids.flatten()[anchors][:, None]
        visibility = self.visibility_class(
            starts=part.starts,
            stops=part.stops,
            num_context=len(context),
            width=self.settings.block_size,
            device=device,
        )
        states: torch.Tensor = draft(
            torch.where(slots == 0, tokens, draft.config.mask_token_id),
            positions[anchors][:, None] + 1 + slots,
            draft.project_hidden_states(aux if len(context) == len(aux) else aux.index_select(0, context)),
            positions[context],
            visibility,
            rows=part.rows,
            longest=positions.max() + 1 + self.settings.block_size,
        )
        return states

    def head_operands(self, states: torch.Tensor, previous: torch.Tensor) -> HeadOperands:
        """Return what the logits of R guesses are a product of.

        Args:
            states: [R, H], the draft's.
            previous: int64 [R], the true target id before each guess.
        """
        return HeadOperands(hidden=states, weight=self.draft_model.lm_head.weight)

    def extra_loss(
        self, states: torch.Tensor, previous: torch.Tensor, alphas: torch.Tensor | None, weights: torch.Tensor
    ) -> torch.Tensor | None:
        """Return a further term of the loss, if there is one.

        Args:
            states, previous: as in `head_operands`.
            alphas: float32 [R], acceptance of each guess, without gradient; None if no term reads distributions.
            weights: float32 [R], exponential position weights over the divisors.
        """
        return None
