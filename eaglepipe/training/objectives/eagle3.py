"""The objective of EAGLE-3: K TTT steps with decaying weights, nothing random."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel

from eaglepipe.cache.types import SampleIndex
from eaglepipe.eagle.core import Eagle3TrainerModule
from eaglepipe.eagle.losses import StepLoss
from eaglepipe.eagle.packed_batch import count_slots
from eaglepipe.recipe.family_settings import Eagle3TrainConfig
from eaglepipe.training.data.batch import BatchColumns, TrainingSource
from eaglepipe.training.data.collate import PackedDocuments
from eaglepipe.training.data.costs import Costs, draft_costs
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.data.supervision_rows import covered_mask
from eaglepipe.training.objectives.interface import BatchDraw, Decoder, DrawFn, TrainerModule


@dataclass(frozen=True)
class Eagle3Objective:
    """`Objective` whose loss at a TTT step is a mean over the slots that the step covers."""

    config: Eagle3TrainConfig
    columns: BatchColumns = BatchColumns()  # noqa: RUF009 - frozen

    @property
    def needs_mean_alphas(self) -> bool:
        return self.config.loss == "lambda"

    @property
    def loss_weights(self) -> tuple[float, ...]:
        decayed = [self.config.step_decay**step for step in range(self.config.ttt_steps)]
        return tuple(weight / sum(decayed) for weight in decayed)

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """Supervised slots run through every step; layers before the last also run all slots of step 0."""
        tokens, supervised = index.num_tokens.astype(np.float64), index.num_supervised.astype(np.float64)
        steps = self.config.ttt_steps
        return draft_costs(
            num_keys=tokens,
            contexts=tokens,
            losses=steps * supervised,
            inner=tokens + (steps - 1) * supervised,
            num_layers=num_layers,
        )

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.clamp(min=1)

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> TrainerModule:
        return Eagle3TrainerModule(
            draft,
            source.vocab.selected_token_ids,
            source.vocab.selected_token_mask,
            self.config.ttt_steps,
            step_decay=self.config.step_decay,
            loss=self._loss,
            chunk_slots=self.config.chunk_tokens,
        )

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        decoder = SupervisionDecoder(source, device=device, dtype=dtype, at_once=self.config.chunk_tokens)
        return lambda batch: {"inputs": replace(decoder.decode(batch), draft_mass=batch.extras.get("draft_mass"))}

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> BatchDraw:
        drawn = draw_slots(self.config.ttt_steps)(packed, epoch)
        return replace(drawn, extras={"draft_mass": _draft_mass(packed)}) if self._loss.needs_mass else drawn

    @property
    def _loss(self) -> StepLoss:
        return StepLoss(kind=self.config.loss, scale=self.config.lk_scale, decay=self.config.lk_decay)


def draw_slots(ttt_steps: int) -> DrawFn:
    """Return a draw that counts the slots of each TTT step; nothing is random."""
    return lambda packed, _epoch: BatchDraw(counts=count_slots(packed.batch.covered_steps(ttt_steps)))


def _draft_mass(packed: PackedDocuments) -> torch.Tensor:
    """Return the target's probability mass inside the draft vocabulary at the S covered slots, float32 [S]."""
    documents = zip(chain.from_iterable(packed.documents), packed.chosen(covered_mask), strict=True)
    rows = [document.draft_mass[mask] for document, mask in documents]
    return torch.from_numpy(np.concatenate([np.empty(0, np.float32), *rows]))
