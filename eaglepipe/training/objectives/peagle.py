"""The objective of P-EAGLE: K depths in one pass, elements drawn by COD sampling, their mean divergence as the loss.

A draw depends on seed, epoch and sample alone: one generator seed per document travels with the batch, from which the
trainer module draws the same elements that are counted here.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from transformers import PreTrainedModel

from eaglepipe.cache.types import SampleIndex
from eaglepipe.eagle.peagle_data import CodSettings, count_elements
from eaglepipe.eagle.peagle_trainer import PeagleTrainerModule
from eaglepipe.recipe.family_settings import PeagleTrainConfig
from eaglepipe.training.data.batch import BatchColumns, TrainingSource
from eaglepipe.training.data.collate import Documents, PackedDocuments
from eaglepipe.training.data.costs import KEY_COST, Costs, draft_costs
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.interface import BatchDraw, Decoder, TrainerModule

_SEEDS = "cod_seeds"


@dataclass(frozen=True)
class PeagleObjective:
    """`Objective` over all supervised slots: the loss is not filtered by the draft vocabulary."""

    config: PeagleTrainConfig
    columns: BatchColumns = BatchColumns(supervision="supervised")  # noqa: RUF009 - frozen

    needs_mean_alphas = False

    @property
    def loss_weights(self) -> tuple[float, ...]:
        return (1.0,) * self.config.peagle_depths

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """Every token is an element, as is all that is drawn below it; a partition runs the ones before it again."""
        tokens, supervised = index.num_tokens.astype(np.float64), index.num_supervised.astype(np.float64)
        below = self._expected_below(supervised, training=training)
        read = tokens * _token_passes(supervised / tokens, self.config.sequence_partitions if training else 1)
        losses, inner = supervised + below, read + below
        of_elements = draft_costs(num_keys=tokens, contexts=read, losses=losses, inner=inner, num_layers=num_layers)
        return of_elements + KEY_COST * below

    def _expected_below(self, supervised: Costs, *, training: bool) -> Costs:
        """Return the expected elements below depth 0, if supervised slots form one span, a slot shorter per depth."""
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
        return lambda batch: {"inputs": decoder.decode(batch), _SEEDS: batch.extras.get(_SEEDS)}

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> BatchDraw:
        seeds = document_seeds(packed.documents, seed=self.config.seed, epoch=epoch) if training else None
        drawn_seeds = None if seeds is None else seeds[seeds >= 0].tolist()
        counts = count_elements(packed.batch, settings=self._settings, seeds=drawn_seeds)
        return BatchDraw(counts=counts, extras={} if seeds is None else {_SEEDS: seeds})


def _token_passes(supervised_share: Costs, num_parts: int) -> Costs:
    """Return how often a token runs through the draft, if the supervised ones are last.

    Part s of S reads s / S of its document; parts without a loss are not run.
    """
    parts = np.ceil(supervised_share * num_parts).clip(min=1)
    return parts * (2 * num_parts - parts + 1) / (2 * num_parts)


def document_seeds(documents: Documents, *, seed: int, epoch: int) -> torch.Tensor:
    """Return one generator seed per document, by its sample id: int64 [B, max_docs], padded with -1."""
    seeds = torch.full((len(documents), max((len(row) for row in documents), default=1)), -1, dtype=torch.int64)
    for row, row_documents in enumerate(documents):
        for column, document in enumerate(row_documents):
            purpose = f"cod/{seed}/{epoch}/{document.sample_id}"
            seeds[row, column] = xxhash.xxh3_64_intdigest(purpose.encode()) >> 1
    return seeds
