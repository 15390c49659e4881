"""The objective of EAGLE-1/2: features and head from the cache, noise seeded by sample and epoch.

Both are trained in the same way; EAGLE-2 decodes with a tree that grows dynamically.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from transformers import PreTrainedModel

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.types import SampleIndex
from eaglepipe.eagle.core_v12 import EagleTrainerModule
from eaglepipe.eagle.packed_batch import count_slots
from eaglepipe.recipe.family_settings import Eagle1TrainConfig
from eaglepipe.target_head import TargetHead
from eaglepipe.training.data.batch import BatchColumns, EncodedBatch, TrainingSource
from eaglepipe.training.data.collate import PackedDocuments
from eaglepipe.training.data.costs import FULL_HEAD_COST, FUSE_COST, LAYER_COST, PAIR_COST, Costs
from eaglepipe.training.objectives.interface import BatchDraw, Decoder, TrainerModule


@dataclass(frozen=True)
class Eagle1Objective:
    """`Objective` whose loss is a mean over supervised slots, at depth 0 alone.

    Evaluations also follow a chain of `train.ttt_steps` depths; a training step logs the acceptance length of the first
    depth, at most 2.
    """

    config: Eagle1TrainConfig
    columns: BatchColumns = BatchColumns(aux=False, supervision="none", last_hidden=True)  # noqa: RUF009 - frozen

    needs_mean_alphas = False

    @property
    def loss_weights(self) -> tuple[float, ...]:
        return (1.0, *[0.0] * (self.config.ttt_steps - 1))

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """Every token runs through the whole draft and attends to its row, about as long as the longest sample.

        The chain of an evaluation repeats all of it at every depth, which changes no proportion.
        """
        tokens, supervised = index.num_tokens.astype(np.float64), index.num_supervised.astype(np.float64)
        layer = LAYER_COST + PAIR_COST * float(tokens.max(initial=0.0))
        return tokens * (FUSE_COST + num_layers * layer) + supervised * FULL_HEAD_COST

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.clamp(min=1)

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> TrainerModule:
        head = TargetHead.from_tensors(source.start_tensors(), source.head, full=True).to(draft.fc.weight.device)
        noise, steps = self.config.feature_noise, self.config.ttt_steps
        return EagleTrainerModule(draft, head, feature_noise=noise, chain_steps=steps)

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        codec = source.spec.rows

        def decode(batch: EncodedBatch) -> dict[str, Any]:
            assert batch.last_hidden_payload is not None
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                features = codec.decode(EncodedRows(payload=batch.last_hidden_payload)).to(dtype)
            return {
                "batch": batch.packed,
                "target_hidden_states": features.reshape(*batch.packed.shape, -1),
                "noise_seeds": batch.extras.get("noise_seeds"),
            }

        return decode

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> BatchDraw:
        steps = self.config.ttt_steps
        computed = 1 if training else steps
        counts = F.pad(count_slots(packed.batch.supervised_chains(computed)), (0, steps - computed))
        if not training or self.config.feature_noise == 0.0:
            return BatchDraw(counts=counts)
        return BatchDraw(counts=counts, extras={"noise_seeds": _noise_seeds(packed, self.config.seed, epoch)})


def _noise_seeds(packed: PackedDocuments, seed: int, epoch: int) -> torch.Tensor:
    """Return a 32-bit seed per slot, int64 [B, T], from document, epoch and run alone; 0 in the padding."""
    seeds = np.zeros(packed.batch.shape, np.int64)
    for row, documents in enumerate(packed.documents):
        start = 0
        for document in documents:
            name = xxhash.xxh3_64_intdigest(document.sample_id.encode())
            end = start + len(document.input_ids)
            seeds[row, start:end] = np.random.default_rng([seed, epoch, name]).integers(0, 2**32, end - start)
            start = end
    return torch.from_numpy(seeds)
