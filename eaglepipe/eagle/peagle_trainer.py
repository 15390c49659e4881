"""P-EAGLE training: all depths in one parallel pass over sampled elements, against the target's distribution.

Symbols: B rows, T slots, D draft vocabulary, K depths, N elements of a partition, R of them in the loss.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from eaglepipe.eagle.core import Eagle3StepMetrics, supervise
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.kernels.fused_head import fused_head_loss
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.peagle.loss import Targets, look_up_targets
from eaglepipe.eagle.peagle.partitions import PartResult, run_parts
from eaglepipe.eagle.peagle_attention import PeagleMask, peagle_mask
from eaglepipe.eagle.peagle_data import (
    CodSettings,
    DocumentElements,
    PeaglePart,
    draw_elements,
    find_documents,
    plan_parts,
)
from eaglepipe.eagle.unroll.checks import (
    check_inputs,
    check_peagle_settings,
    check_supervision_source,
    check_vocabulary,
)
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets


class PeagleTrainerModule(nn.Module):
    """Draft-side P-EAGLE trainer module.

    In training, elements are drawn by COD sampling; in evaluation every chain counts at every depth, so that `hits` and
    `valid` are comparable with those of EAGLE-3.

    Args:
        draft_model: a draft built with `parallel_drafting`.
        selected_token_ids: int64 [D], ascending target ids of the draft vocabulary.
        selected_token_mask: bool [V], True for those ids.
        depths: K, tokens drafted in one pass.
        cod_ratio, cod_min_ratio: share of the supervised slots that is drawn at depth d: max(ratio^d, min_ratio).
        sequence_partitions: parts that a training batch goes through one after the other; gradients add up to those of
            a single pass, activations are one part's.
        head_chunk_rows: rows whose logits are held at once; None: as many as suit the device.
        eval_elements: about how many elements an evaluation runs at once.

    Raises:
        DraftError: for settings that do not fit together, or a draft without mask token.
    """

    selected_token_ids: torch.Tensor
    selected_token_mask: torch.Tensor

    def __init__(
        self,
        draft_model: LlamaEagle3DraftModel,
        selected_token_ids: torch.Tensor,
        selected_token_mask: torch.Tensor,
        depths: int = 8,
        *,
        cod_ratio: float = 0.7,
        cod_min_ratio: float = 0.2,
        sequence_partitions: int = 1,
        head_chunk_rows: int | None = None,
        eval_elements: int = 16384,
    ) -> None:
        super().__init__()
        self.settings = CodSettings(depths=depths, ratio=cod_ratio, min_ratio=cod_min_ratio)
        check_peagle_settings(draft_model.config, self.settings, sequence_partitions)
        check_vocabulary(draft_model.config, selected_token_ids, selected_token_mask)
        self.draft_model = draft_model
        self.sequence_partitions = sequence_partitions
        self.head_chunk_rows = head_chunk_rows
        self.eval_elements = eval_elements
        self.register_buffer("selected_token_ids", selected_token_ids.long(), persistent=False)
        self.register_buffer("selected_token_mask", selected_token_mask.bool(), persistent=False)

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
        cod_seeds: torch.Tensor | None = None,
    ) -> Eagle3StepMetrics:
        """Return `compute_loss` of tensors given one by one, as `Eagle3TrainerModule.forward` takes them.

        Args:
            target_probs: compact rows are those of the slots set in `loss_mask`.
            normalizers, cod_seeds: as `compute_loss` takes them.

        Raises:
            DraftError: for no or two supervision sources, and for shapes or masks that do not fit.
        """
        check_supervision_source(target_logits, target_probs, position_mask)
        batch = PackedBatch.of(
            input_ids, attention_mask, loss_mask, position_mask, position_ids, seq_lens, doc_remaining
        )
        if target_logits is not None:
            batch, target_probs = supervise(batch, target_logits, self.selected_token_ids, self.selected_token_mask)
        assert target_probs is not None
        inputs = TrainerInputs(batch=batch, aux_hidden_states=aux_hidden_states, target_probs=target_probs)
        return self.compute_loss(inputs, normalizers=normalizers, cod_seeds=cod_seeds)

    def compute_loss(
        self,
        inputs: TrainerInputs,
        *,
        normalizers: torch.Tensor | None = None,
        cod_seeds: torch.Tensor | None = None,
    ) -> Eagle3StepMetrics:
        """Compute the loss and metrics of one batch.

        Args:
            inputs: compact target rows are those of the slots set in `loss_mask`: the loss is not filtered by what the
                draft vocabulary covers. `position_mask` only marks where a greedy draft can be right.
            normalizers: [K], the divisors of the depths' loss sums; default, for all, the number of elements in the
                loss. Larger numbers give one batch its share of a loss that is reduced over several.
            cod_seeds: int64 [B, max_docs], a seed for each document that is not all padding, -1 elsewhere; None draws
                seeds from torch's global generator.

        Raises:
            DraftError: for shapes or masks that do not fit.
        """
        inputs, config = inputs.prepared(), self.draft_model.config
        check_inputs(
            config,
            inputs,
            draft_size=config.draft_vocab_size,
            normalizers=normalizers,
            num_steps=self.settings.depths,
            row_mask="loss_mask",
        )
        drawn = self._draw(inputs.batch.on_host(), cod_seeds)
        if normalizers is None:
            total = sum(int(elements.in_loss.sum()) for elements in drawn)
            normalizers = torch.full((self.settings.depths,), max(1, total))
        depth_weights = 1.0 / normalizers.to(inputs.batch.device, torch.float32)
        targets = look_up_targets(inputs, config.draft_vocab_size)
        loss, results = self._run_parts(inputs, targets, plan_parts(drawn, self._num_parts(drawn)), depth_weights)
        return measure_parts(inputs.batch, loss, results, self.settings.depths)

    def _draw(self, host: PackedBatch, cod_seeds: torch.Tensor | None) -> list[DocumentElements]:
        if not self.training:
            return list(draw_elements(host, self.settings, None))
        if cod_seeds is None:
            cod_seeds = torch.randint(2**62, (len(find_documents(host)),))
        return list(draw_elements(host, self.settings, cod_seeds[cod_seeds >= 0].tolist()))

    def _num_parts(self, drawn: list[DocumentElements]) -> int:
        if self.training:
            return self.sequence_partitions
        return max(1, -(-sum(len(elements.anchors) for elements in drawn) // self.eval_elements))

    def _run_parts(
        self, inputs: TrainerInputs, targets: Targets, parts: list[PeaglePart], depth_weights: torch.Tensor
    ) -> tuple[torch.Tensor, list[PartResult]]:
        run = partial(self._run, inputs, targets, depth_weights=depth_weights)
        parameters = [parameter for parameter in self.draft_model.parameters() if parameter.requires_grad]
        loss, results = run_parts(run, parts, parameters)
        return depth_weights.new_zeros(()) if loss is None else loss, results

    def _run(
        self, inputs: TrainerInputs, targets: Targets, part: PeaglePart, *, depth_weights: torch.Tensor
    ) -> PartResult:
        draft, device = self.draft_model, inputs.batch.device
        anchors, depths, rows = (table.to(device) for table in (part.anchors, part.depths, part.rows))
        ids = torch.where(depths > 0, draft.config.mask_token_id, inputs.batch.input_ids.flatten()[anchors])
        states = draft.forward_peagle(
            ids[None],
            self._hidden(inputs.aux.flatten(0, 1), part)[None],
            inputs.batch.position_ids.flatten()[anchors + depths][None],
            self._mask(inputs.batch, anchors, depths),
            rows=rows,
        )[0]
        anchors, depths = anchors[rows], depths[rows]
        references = anchors + depths
        target_rows, weights = targets.row_of_slot[references], depth_weights[depths]
        head = fused_head_loss(
            draft.head_input(states),
            draft.lm_head.weight,
            targets.rows,
            target_rows,
            weights,
            chunk_rows=self.head_chunk_rows,
        )
        entropies = targets.entropies[target_rows]
        covered = inputs.batch.position_mask.flatten()[references]
        return PartResult(
            loss=head.loss - (weights * entropies).sum(),
            slots=anchors,
            depths=depths,
            losses=head.row_losses - entropies,
            matched=(head.predicted == targets.tokens[target_rows]) & covered,
        )

    def _hidden(self, aux: torch.Tensor, part: PeaglePart) -> torch.Tensor:
        """Projected aux states [N, H] at depth 0, the projected placeholder below."""
        deep = part.depths > 0
        slots = part.anchors[~deep].to(aux.device)
        order = deep.int().argsort(stable=True).argsort().to(aux.device)
        projected = self.draft_model.project_hidden_states(
            aux if len(slots) == len(aux) else aux.index_select(0, slots)
        )
        masked = self.draft_model.masked_projected_hidden().expand(int(deep.sum()), -1)
        return torch.cat((projected, masked)).index_select(0, order)

    def _mask(self, batch: PackedBatch, anchors: torch.Tensor, depths: torch.Tensor) -> PeagleMask:
        num_rows, num_slots = batch.shape
        lengths = torch.full((num_rows,), num_slots) if batch.seq_lens is None else batch.seq_lens.flatten()
        mask = peagle_mask(anchors, depths, lengths.to(anchors.device), num_rows * num_slots)
        return replace(mask, longest=batch.position_ids.max() + 1)


@torch.no_grad()
def measure_parts(
    batch: PackedBatch, loss: torch.Tensor, results: list[PartResult], num_depths: int
) -> Eagle3StepMetrics:
    """Add up the results by depth; a chain's depths may lie in two partitions."""
    device, num_slots = batch.device, batch.input_ids.numel()
    present, matched = torch.zeros(2, num_depths, num_slots, dtype=torch.bool, device=device)
    loss_sums = torch.zeros(num_depths, device=device)
    for result in results:
        present[result.depths, result.slots] = True
        matched[result.depths, result.slots] = result.matched
        loss_sums.index_add_(0, result.depths, result.losses)
    counts, correct = present.sum(1), matched.sum(1)
    return Eagle3StepMetrics(
        loss=loss,
        accuracy=correct.sum().float() / counts.sum().clamp(min=1),
        valid_tokens=counts.sum(),
        loss_sums=loss_sums,
        counts=counts,
        correct=correct,
        hits=matched.cumprod(0).sum(1),
        valid=present.cumprod(0).sum(1),
    )
