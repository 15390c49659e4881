"""The objective of DFlash: blocks behind drawn anchors, weighted by position, divided by the number of guesses.

A draw depends on seed, epoch and sample alone, as P-EAGLE's: one generator seed a document travels with the batch.
"""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.types import SampleIndex
from eaglepipe.eagle.dflash.anchors import BlockSettings, draw_blocks
from eaglepipe.eagle.dflash.inputs import BlockInputs
from eaglepipe.eagle.dflash.losses import BlockLoss
from eaglepipe.eagle.dflash.trainer import DFlashTrainerModule
from eaglepipe.recipe.block_settings import DflashTrainConfig
from eaglepipe.training.data.batch import BatchColumns, EncodedBatch, TrainingSource
from eaglepipe.training.data.collate import PackedDocuments, shifted_column
from eaglepipe.training.data.costs import KEY_COST, Costs, draft_costs
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.data.supervision_rows import supervised_mask
from eaglepipe.training.objectives.interface import BatchDraw, Decoder, TrainerModule
from eaglepipe.training.objectives.peagle import document_seeds

_SEEDS, _TOP1, _MASS = "anchor_seeds", "target_top1", "draft_mass"


@dataclass(frozen=True)
class DflashObjective:
    """`Objective` over the guesses of blocks; the target's distributions are read only if the loss needs them."""

    config: DflashTrainConfig

    needs_mean_alphas = False
    module_class: ClassVar[type[DFlashTrainerModule]] = DFlashTrainerModule

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """Exponential weights, from 1 down; D-PACE's, which follow the draft, are none of an evaluation."""
        return tuple(float(np.exp(-depth / self.config.gamma)) for depth in range(self.config.depths))

    @property
    def columns(self) -> BatchColumns:
        return BatchColumns(supervision="supervised" if self._reads_probs else "none")

    @property
    def _reads_probs(self) -> bool:
        return self.config.loss.reads_supervision or self.config.labels == "top1"

    @property
    def _settings(self) -> BlockSettings:
        config = self.config
        return BlockSettings(
            block_size=config.block_size, anchor_slots=config.family.anchor_slots, max_anchors=config.max_anchors
        )

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """Every token is context of each layer; blocks of whole size run through all layers but the last."""
        tokens, supervised = index.num_tokens.astype(np.float64), index.num_supervised.astype(np.float64)
        blocks = np.minimum(supervised, self.config.max_anchors) if training else supervised
        costs = draft_costs(
            num_keys=tokens,
            contexts=tokens,
            losses=blocks * self.config.depths,
            inner=blocks * self.config.block_size,
            num_layers=num_layers,
        )
        return costs + num_layers * KEY_COST * tokens

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.sum().clamp(min=1).expand(len(counts))

    def block_loss(self) -> BlockLoss:
        """Return the loss as the trainer module takes it."""
        config, terms = self.config, self.config.loss
        return BlockLoss(
            ce=terms.ce,
            kl=terms.kl,
            tv=terms.tv,
            weights=config.position_weights,
            gamma=config.gamma,
            dpace_alpha=config.dpace_alpha,
        )

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> TrainerModule:
        return self.module_class(
            draft,
            source.vocab.selected_token_ids,
            source.vocab.selected_token_mask,
            loss=self.block_loss(),
            max_anchors=self.config.max_anchors,
            teacher_labels=self.config.labels == "top1",
            sequence_partitions=self.config.sequence_partitions,
        )

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        decoder = SupervisionDecoder(source, device=device, dtype=dtype) if self._reads_probs else None

        def decode(batch: EncodedBatch) -> dict[str, BlockInputs | torch.Tensor | None]:
            if decoder is not None:
                decoded = decoder.decode(batch)
                aux, probs = decoded.aux_hidden_states, decoded.whole_targets
            else:
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    rows = EncodedRows(payload=batch.aux_payload, scales=batch.aux_scales)
                    aux, probs = source.spec.decode_aux(rows).to(dtype).reshape(*batch.packed.shape, -1), None
            inputs = BlockInputs(
                batch=batch.packed,
                aux_hidden_states=aux,
                target_top1=batch.extras[_TOP1],
                target_probs=probs,
                draft_mass=batch.extras.get(_MASS),
            )
            return {"inputs": inputs, _SEEDS: batch.extras.get(_SEEDS)}

        return decode

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> BatchDraw:
        seeds = document_seeds(packed.documents, seed=self.config.seed, epoch=epoch) if training else None
        drawn = draw_blocks(packed.batch, self._settings, None if seeds is None else seeds[seeds >= 0].tolist())
        extras = {_TOP1: _target_top1(packed)}
        if seeds is not None:
            extras[_SEEDS] = seeds
        if self._reads_probs:
            extras[_MASS] = _draft_mass(packed)
        return BatchDraw(counts=drawn.counts(self.config.depths), extras=extras)


def _target_top1(packed: PackedDocuments) -> torch.Tensor:
    """Return the target's likeliest token of each slot's supervision, int64 [B, T], -1 without."""
    num_slots = packed.batch.shape[1]
    top1 = shifted_column(packed.documents, num_slots, lambda document: document.target_top1, np.int64)
    return top1.masked_fill(~packed.batch.loss_mask, -1)


def _draft_mass(packed: PackedDocuments) -> torch.Tensor:
    """Return the target's probability mass inside the draft vocabulary at the supervised slots, float32 [S]."""
    rows = [document.draft_mass[supervised_mask(document)] for document in chain.from_iterable(packed.documents)]
    return torch.from_numpy(np.concatenate([np.empty(0, np.float32), *rows]))
