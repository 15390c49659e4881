"""P-EAGLE as an objective: K depths in one pass, elements drawn by COD sampling, the mean divergence of all of them.

A draw depends on the seed, the epoch and the sample alone: one generator seed a document travels with the batch, and
the trainer module makes of it the elements that were counted here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import PreTrainedModel

from eaglepipe.cache.types import SampleIndex
from eaglepipe.eagle.peagle_data import CodSettings, count_elements
from eaglepipe.eagle.peagle_trainer import PeagleTrainerModule
from eaglepipe.recipe.family_settings import PeagleTrainConfig
from eaglepipe.training.data.batch import BatchColumns, EncodedBatch, TrainingSource
from eaglepipe.training.data.collate import Documents, PackedDocuments
from eaglepipe.training.data.costs import KEY_COST, Costs, draft_costs
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.interface import Decoder, Drawn, TrainerModule

_SEEDS = "cod_seeds"


@dataclass(frozen=True)
class PeagleObjective:
    """An `Objective`; every supervised slot has its row, since the loss is not filtered by the draft vocabulary."""

    config: PeagleTrainConfig
    columns: BatchColumns = BatchColumns(supervision="supervised")  # noqa: RUF009 - frozen

    needs_mean_alphas = False

    @property
    def loss_weights(self) -> tuple[float, ...]:
        return (1.0,) * self.config.peagle_depths

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """Every token is an element, and so is what is drawn below it; a partition reads those before it again."""
        tokens, supervised = index.num_tokens.astype(np.float64), index.num_supervised.astype(np.float64)
        below = self._expected_below(supervised, training=training)
        read = tokens * _times_read(supervised / tokens, self.config.sequence_partitions if training else 1)
        losses, inner = supervised + below, read + below
        of_elements = draft_costs(num_keys=tokens, contexts=read, losses=losses, inner=inner, num_layers=num_layers)
        return of_elements + KEY_COST * below

    def _expected_below(self, supervised: Costs, *, training: bool) -> Costs:
        """Elements below depth 0, where the supervised slots are one run, which is one shorter at each depth."""
        settings, total = self._settings, np.zeros_like(supervised)
        for depth in range(1, settings.depths):
            share = settings.share(depth) if training else 1.0
            total += share * np.maximum(0.0, supervised - depth)
        return total

    @property
    def _settings(self) -> CodSettings:
        config = self.config
        return CodSettings(depths=config.peagle_depths, ratio=config.cod_ratio, min_ratio=config.cod_min_ratio)

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.sum().clamp(min=1).expand(len(counts))

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> TrainerModule:
        return PeagleTrainerModule(
            draft,
            source.vocab.selected_token_ids,
            source.vocab.selected_token_mask,
            self.config.peagle_depths,
            cod_ratio=self.config.cod_ratio,
            cod_min_ratio=self.config.cod_min_ratio,
            sequence_partitions=self.config.sequence_partitions,
        )

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        decoder = SupervisionDecoder(source, device=device, dtype=dtype)

        def decode(batch: EncodedBatch) -> dict[str, Any]:
            return {"inputs": decoder.decode(batch), _SEEDS: batch.extras.get(_SEEDS)}

        return decode

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> Drawn:
        seeds = document_seeds(packed.documents, seed=self.config.seed, epoch=epoch) if training else None
        drawn_seeds = None if seeds is None else seeds[seeds >= 0].tolist()
        counts = count_elements(packed.batch, settings=self._settings, seeds=drawn_seeds)
        return Drawn(counts=counts, extras={} if seeds is None else {_SEEDS: seeds})


def _times_read(supervised_share: Costs, num_parts: int) -> Costs:
    """How often a token goes through the draft, the supervised ones lying at the end: parts without a loss are not run.

    Part s of S reads s / S of its document.
    """
    parts = np.ceil(supervised_share * num_parts).clip(min=1)
    return parts * (2 * num_parts - parts + 1) / (2 * num_parts)


def document_seeds(documents: Documents, *, seed: int, epoch: int) -> torch.Tensor:
    """One generator seed a document, by its sample id: int64 [B, max_docs], -1 where a row has no more."""
    seeds = torch.full((len(documents), max((len(row) for row in documents), default=1)), -1, dtype=torch.int64)
    for row, of_row in enumerate(documents):
        for place, document in enumerate(of_row):
            purpose = f"cod/{seed}/{epoch}/{document.sample_id}"
            seeds[row, place] = xxhash.xxh3_64_intdigest(purpose.encode()) >> 1
    return seeds
