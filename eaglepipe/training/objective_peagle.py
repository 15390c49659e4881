"""P-EAGLE as an objective: K depths in one pass, elements drawn by COD sampling, the mean divergence of all of them.

A draw depends on the seed, the epoch and the sample alone: one generator seed a document travels with the batch, and
the trainer module makes of it the elements that were counted here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import nn
from transformers import PreTrainedModel

from eaglepipe.config import DraftConfig, TrainConfig
from eaglepipe.eagle.peagle_data import CodSettings, count_elements
from eaglepipe.eagle.peagle_trainer import PeagleTrainerModule
from eaglepipe.training.collate import Columns, Documents
from eaglepipe.training.draft import build_draft
from eaglepipe.training.objective import Decoder, Drawn
from eaglepipe.training.supervision import SupervisionDecoder
from eaglepipe.training.types import EncodedBatch, Reads, TrainingSource

_SEEDS = "cod_seeds"


@dataclass(frozen=True)
class PeagleObjective:
    """An `Objective`; every supervised slot has its row, since the loss is not filtered by the draft vocabulary."""

    config: TrainConfig
    reads: Reads = Reads(supervision="supervised")  # noqa: RUF009 - frozen

    @property
    def loss_weights(self) -> tuple[float, ...]:
        return (1.0,) * self.config.peagle_depths

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.sum().clamp(min=1).expand(len(counts))

    def build_draft(self, source: TrainingSource, config: DraftConfig) -> PreTrainedModel:
        draft = build_draft(source, config, seed=self.config.seed, parallel_drafting=True)
        draft.model.gradient_checkpointing = self.config.gradient_checkpointing
        return draft

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> nn.Module:
        return PeagleTrainerModule(
            draft,
            source.selected_token_ids,
            source.selected_token_mask,
            self.config.peagle_depths,
            cod_ratio=self.config.cod_ratio,
            cod_min_ratio=self.config.cod_min_ratio,
            sequence_partitions=self.config.sequence_partitions,
        )

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        decoder = SupervisionDecoder(source, device=device, dtype=dtype)

        def decode(batch: EncodedBatch) -> dict[str, Any]:
            return {**decoder.decode(batch).arguments(), _SEEDS: batch.extras.get(_SEEDS)}

        return decode

    def draw(self, columns: Columns, epoch: int, *, training: bool) -> Drawn:
        settings = CodSettings(
            depths=self.config.peagle_depths, ratio=self.config.cod_ratio, min_ratio=self.config.cod_min_ratio
        )
        seeds = document_seeds(columns.documents, seed=self.config.seed, epoch=epoch) if training else None
        counts = count_elements(
            columns.loss_mask,
            columns.attention_mask,
            columns.seq_lens,
            columns.doc_remaining,
            settings=settings,
            seeds=None if seeds is None else seeds[seeds >= 0].tolist(),
        )
        return Drawn(counts=counts, extras={} if seeds is None else {_SEEDS: seeds})


def document_seeds(documents: Documents, *, seed: int, epoch: int) -> torch.Tensor:
    """One generator seed a document, by its sample id: int64 [B, max_docs], -1 where a row has no more."""
    seeds = torch.full((len(documents), max((len(row) for row in documents), default=1)), -1, dtype=torch.int64)
    for row, of_row in enumerate(documents):
        for place, document in enumerate(of_row):
            purpose = f"cod/{seed}/{epoch}/{document.sample_id}"
            seeds[row, place] = xxhash.xxh3_64_intdigest(purpose.encode()) >> 1
    return seeds
