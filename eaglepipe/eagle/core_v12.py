"""EAGLE-1/2 training: regression of the next feature, and the token that the target's frozen head makes of it.

In evaluation mode the draft also continues from its own features, K depths deep with true tokens, so that a simulated
acceptance length is comparable with that of EAGLE-3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn

from eaglepipe.eagle.draft_llama_v12 import LlamaEagleDraftModel
from eaglepipe.eagle.kernels.frozen_head import frozen_head_loss, head_argmax
from eaglepipe.eagle.kernels.noise import uniform_noise
from eaglepipe.eagle.layers.blocks_v12 import Chain
from eaglepipe.eagle.packed_batch import PackedBatch, at_slots, check_shape, count_slots, shift_left_with_zero
from eaglepipe.eagle.unroll.attention.plain import check_right_padded
from eaglepipe.errors import DraftError
from eaglepipe.target_head import TargetHead


@dataclass(frozen=True, kw_only=True)
class EagleStepMetrics:
    """Aggregated metrics of one forward; K depths, of which training computes the first alone (zeros elsewhere)."""

    loss: torch.Tensor  # float32, carries the gradient
    accuracy: torch.Tensor  # float32, greedy token equal to the target's, at depth 0
    valid_tokens: torch.Tensor  # int64, slots in the loss
    regression_sum: torch.Tensor  # float32, SmoothL1 (mean over H), summed over the slots in the loss
    classification_sum: torch.Tensor  # float32, soft cross-entropy, summed over them
    loss_sums: torch.Tensor  # float32 [K], the weighted sum of both at depth 0
    counts: torch.Tensor  # int64 [K]
    correct: torch.Tensor  # int64 [K]
    hits: torch.Tensor  # int64 [K], slots whose first k+1 greedy drafts all match the target's top-1
    valid: torch.Tensor  # int64 [K], slots supervised at every depth up to k


class EagleTrainerModule(nn.Module):
    """Draft-side EAGLE-1/2 trainer module.

    Args:
        draft_model: the draft.
        head: the target's lm_head, all V rows; frozen.
        regression_weight, classification_weight: of SmoothL1 and of soft cross-entropy.
        feature_noise: while training, U(-x, x) is added to the input features.
        chain_steps: K, the depth of the chain in evaluations, an int of at least 1.
        head_chunk_rows: rows whose logits over V are held at once.

    Raises:
        DraftError: for settings that do not fit together.
    """

    head_weight: torch.Tensor
    head_bias: torch.Tensor | None

    def __init__(
        self,
        draft_model: LlamaEagleDraftModel,
        head: TargetHead,
        *,
        regression_weight: float = 1.0,
        classification_weight: float = 0.1,
        feature_noise: float = 0.1,
        chain_steps: int = 7,
        head_chunk_rows: int = 256,
    ) -> None:
        super().__init__()
        if isinstance(chain_steps, bool) or not isinstance(chain_steps, int) or chain_steps < 1:
            raise DraftError(f"chain_steps must be an int of at least 1, not {chain_steps!r}")
        expected = (draft_model.config.vocab_size, draft_model.config.hidden_size)
        if tuple(head.weight.shape) != expected:
            raise DraftError(
                f"the target's lm_head has shape {tuple(head.weight.shape)}; EAGLE-1/2 needs the rows of every token, "
                f"{expected}"
            )
        self.draft_model = draft_model
        self.regression_weight, self.classification_weight = regression_weight, classification_weight
        self.feature_noise, self.chain_steps, self.head_chunk_rows = feature_noise, chain_steps, head_chunk_rows
        self._head_spec = head.spec
        self.register_buffer("head_weight", head.weight.detach(), persistent=False)
        self.register_buffer("head_bias", None if head.bias is None else head.bias.detach(), persistent=False)

    @property
    def head(self) -> TargetHead:
        """The target's lm_head, on the device of this module."""
        return TargetHead(weight=self.head_weight, bias=self.head_bias, spec=self._head_spec)

    def forward(  # noqa: PLR0917 - in the order of Eagle3TrainerModule
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        loss_mask: torch.Tensor,
        target_hidden_states: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        seq_lens: torch.Tensor | None = None,
        doc_remaining: torch.Tensor | None = None,
        *,
        noise_seeds: torch.Tensor | None = None,
        normalizers: torch.Tensor | None = None,
    ) -> EagleStepMetrics:
        """Return `compute_loss` of tensors given one by one; ids and loss mask are shifted left once already.

        Args:
            input_ids, attention_mask, loss_mask, position_ids, seq_lens, doc_remaining: the fields of `PackedBatch`, of
                any integer dtype, absent ones as `PackedBatch.of` fills them.
            target_hidden_states, noise_seeds, normalizers: as `compute_loss` takes them.

        Raises:
            DraftError: for shapes or masks that do not fit.
        """
        batch = PackedBatch.of(input_ids, attention_mask, loss_mask, None, position_ids, seq_lens, doc_remaining)
        return self.compute_loss(batch, target_hidden_states, noise_seeds=noise_seeds, normalizers=normalizers)

    def compute_loss(
        self,
        batch: PackedBatch,
        target_hidden_states: torch.Tensor,
        *,
        noise_seeds: torch.Tensor | None = None,
        normalizers: torch.Tensor | None = None,
    ) -> EagleStepMetrics:
        """Compute the loss and metrics of one batch.

        Args:
            batch: without host copy its masks are fetched from the device, and the host waits for it.
            target_hidden_states: [B, T, H], not shifted; slot t's target is row t + 1.
            noise_seeds: int64 [B, T] in 0..2^32-1, seeds of the noise; default: drawn from torch's generator.
            normalizers: [K], the divisors of the depths' loss sums; default their own counts, at least 1.

        Raises:
            DraftError: for shapes or masks that do not fit.
        """
        self._check(batch, target_hidden_states, normalizers)
        chain_masks = list(batch.supervised_chains(self.chain_steps))
        slots = chain_masks[0]
        features = target_hidden_states.detach()
        predicted = self.draft_model(
            batch.input_ids,
            self._noisy(features, noise_seeds),
            batch.attention_mask,
            batch.position_ids,
            batch.seq_lens,
        )
        goals = shift_left_with_zero(features)[slots]
        drafted = predicted[slots]
        regression = F.smooth_l1_loss(drafted.float(), goals.float(), reduction="none").mean(dim=-1).sum()
        tokens = frozen_head_loss(drafted, goals, self.head, chunk_rows=self.head_chunk_rows)
        loss_sum = self.regression_weight * regression + self.classification_weight * tokens.loss_sum

        matches = [at_slots(tokens.predicted == tokens.target_top1, slots)]
        if not self.training:
            matches += self._chain(batch, features, at_slots(tokens.target_top1, slots), chain_masks[1:])
        counts = self._per_depth(chain_masks[: len(matches)])
        divisor = counts[0].clamp(min=1) if normalizers is None else normalizers[0]
        return EagleStepMetrics(
            loss=loss_sum / divisor.to(loss_sum.device),
            accuracy=matches[0].sum().float() / counts[0].clamp(min=1),
            valid_tokens=counts[0],
            regression_sum=regression.detach(),
            classification_sum=tokens.loss_sum.detach(),
            loss_sums=F.pad(loss_sum.detach()[None], (0, self.chain_steps - 1)),
            counts=counts,
            correct=self._per_depth(matches),
            hits=self._per_depth(list(accumulate(matches, torch.logical_and))),
            valid=counts,
        )

    def _noisy(self, features: torch.Tensor, seeds: torch.Tensor | None) -> torch.Tensor:
        if not self.training or self.feature_noise == 0.0:
            return features
        if seeds is None:
            seeds = torch.randint(2**32, features.shape[:2], device=features.device)
        noise = uniform_noise(seeds, features.shape[-1], self.feature_noise)
        return (features + noise).to(features.dtype)

    @torch.no_grad()
    def _chain(
        self, batch: PackedBatch, features: torch.Tensor, top1: torch.Tensor, masks: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Match greedy tokens with the target's (`top1` int64 [B, T]) at each depth from 1 on: bool [B, T]."""
        readable, positions, input_ids = batch.causal_mask(), batch.position_ids, batch.input_ids
        chains: list[Chain] = [[] for _ in self.draft_model.layers]
        state = self.draft_model.forward_chain(input_ids, features, readable, positions, chains)
        matches = []
        for mask in masks:
            input_ids, top1 = shift_left_with_zero(input_ids), shift_left_with_zero(top1)
            state = self.draft_model.forward_chain(input_ids, state, readable, positions, chains)
            drafted = head_argmax(state[mask], self.head, self.head_chunk_rows)
            matches.append(at_slots(drafted == top1[mask], mask))
        return matches

    def _per_depth(self, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Count the slots set in each mask, int64 [K]; 0 at depths that were not computed."""
        return F.pad(count_slots(masks), (0, self.chain_steps - len(masks)))

    def _check(self, batch: PackedBatch, target_hidden_states: torch.Tensor, normalizers: torch.Tensor | None) -> None:
        width = self.draft_model.config.hidden_size
        check_shape("target_hidden_states", target_hidden_states, (*batch.shape, width))
        check_shape("normalizers", normalizers, (self.chain_steps,))
        host = batch.on_host()
        check_right_padded(host.attention_mask)
        if bool((host.loss_mask & ~host.attention_mask).any()):
            raise DraftError("loss_mask is set on padding; shift it left by one, within its document")
