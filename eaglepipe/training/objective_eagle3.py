"""EAGLE-3 as an objective: K TTT steps, a decaying weight a step, nothing random."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from eaglepipe.config import DraftConfig, TrainConfig
from eaglepipe.eagle.core import Eagle3TrainerModule, count_valid_per_step
from eaglepipe.training.collate import Columns
from eaglepipe.training.draft import build_draft
from eaglepipe.training.objective import Decoder, Draw, Drawn
from eaglepipe.training.supervision import SupervisionDecoder
from eaglepipe.training.types import Reads, TrainingSource


@dataclass(frozen=True)
class Eagle3Objective:
    """An `Objective`; the loss of a step is its mean over the slots that count there."""

    config: TrainConfig
    reads: Reads = Reads()  # noqa: RUF009 - frozen

    @property
    def loss_weights(self) -> tuple[float, ...]:
        decayed = [self.config.step_decay**step for step in range(self.config.ttt_steps)]
        return tuple(weight / sum(decayed) for weight in decayed)

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.clamp(min=1)

    def build_draft(self, source: TrainingSource, config: DraftConfig) -> PreTrainedModel:
        draft = build_draft(source, config, seed=self.config.seed)
        draft.model.gradient_checkpointing = self.config.gradient_checkpointing
        return draft

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> nn.Module:
        return Eagle3TrainerModule(
            draft,
            source.selected_token_ids,
            source.selected_token_mask,
            self.config.ttt_steps,
            step_decay=self.config.step_decay,
        )

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        decoder = SupervisionDecoder(source, device=device, dtype=dtype)
        return lambda batch: {**decoder.decode(batch).arguments(), "masks": batch.masks}

    def draw(self, columns: Columns, epoch: int, *, training: bool) -> Drawn:
        return draw_slots(self.config.ttt_steps)(columns, epoch)


def draw_slots(ttt_steps: int) -> Draw:
    """Count slots at each TTT step; nothing is random."""

    def draw(columns: Columns, _epoch: int) -> Drawn:
        mask = columns.position_mask.squeeze(-1)
        return Drawn(counts=count_valid_per_step(mask, columns.doc_remaining, ttt_steps))

    return draw
