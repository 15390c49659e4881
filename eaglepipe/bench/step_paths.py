"""One workload through both implementations of the trainer module: the same samples, seen as rows two ways.

The compact path takes them packed as training packs them, the reference in corpus order, padded to the longest of a
batch. Supervision is decoded before the clock starts, for both; a pass is forward and backward of every batch.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from eaglepipe.bench.made_cache import TargetShape
from eaglepipe.bench.products import Products, unroll_products
from eaglepipe.bench.step_presets import StepPreset, Workload
from eaglepipe.bench.timing import timed
from eaglepipe.cache.reader import Cache
from eaglepipe.eagle.core import Eagle3TrainerModule
from eaglepipe.eagle.kernels.fused_head import rows_at_once
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.slot_plan import UnrollPlan, plan_unroll
from eaglepipe.recipe.family_settings import Eagle3DraftConfig, Eagle3TrainConfig
from eaglepipe.training.data.batch import DataPosition, EncodedBatch, PackingLimits, Row, StepPlan
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import micro_batches
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.builders import build_eagle3_draft
from eaglepipe.training.objectives.eagle3 import Eagle3Objective, draw_slots
from eaglepipe.training.run.learner import COMPUTE_DTYPES

Implementation = Literal["compact", "reference"]


@dataclass(frozen=True, kw_only=True)
class PathSizes:
    """What a pass goes through: real tokens, supervised ones, slots with their padding, losses of each TTT step."""

    tokens: int
    supervised_tokens: int
    slots: int
    counts: torch.Tensor  # int64 [K]

    @property
    def padding(self) -> float:
        return 1 - self.tokens / self.slots


class StepPath:
    """One implementation with a draft of its own and all batches of a workload, encoded, on the device."""

    def __init__(
        self,
        preset: StepPreset,
        workload: Workload,
        cache: Cache,
        implementation: Implementation,
        device: torch.device,
    ) -> None:
        self.device, self._preset, self._implementation = device, preset, implementation
        self._dtype = COMPUTE_DTYPES[preset.dtype]
        compact = implementation == "compact"
        rows = compact_rows(workload, cache, preset.ttt_steps) if compact else padded_rows(workload, cache)
        self.batches, self.sizes = load_all(cache, rows, ttt_steps=preset.ttt_steps, device=device)
        self.module = make_module(preset.shape, cache, preset.ttt_steps, implementation).to(device).train()
        self._decoder = SupervisionDecoder(cache, device=device, dtype=self._dtype)

    def run_all(self) -> tuple[float, torch.Tensor]:
        """One pass; seconds of its forwards and backwards, and the summed loss of each step, float64 [K]."""
        seconds, loss_sums = 0.0, torch.zeros(self._preset.ttt_steps, dtype=torch.float64)
        for batch in self.batches:
            inputs = self.decode(batch)
            took, of_batch = timed(partial(self.step, inputs), self.device)
            seconds += took
            loss_sums += of_batch.cpu().double()
        self.module.zero_grad(set_to_none=True)
        return seconds, loss_sums

    def decode(self, batch: EncodedBatch) -> TrainerInputs:
        """Decode what the module learns from; the padded reference needs to know nothing of packing."""
        inputs = self._decoder.decode(batch)
        if self._implementation == "compact":
            return inputs
        padded = replace(inputs.batch, seq_lens=None, doc_remaining=None, host_copy=None)
        return replace(inputs, batch=padded)

    def step(self, inputs: TrainerInputs) -> torch.Tensor:
        """Forward and backward of one batch; each step's summed loss, float32 [K]."""
        enabled = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=enabled):
            metrics = self.module.compute_loss(inputs, normalizers=self.sizes.counts.clamp(min=1).to(self.device))
        metrics.loss.backward()
        return metrics.loss_sums

    def largest(self) -> EncodedBatch:
        """The batch of most slots, and of most losses among those."""
        return max(
            self.batches, key=lambda batch: (batch.packed.input_ids.numel(), int(batch.packed.position_mask.sum()))
        )

    def products(self) -> list[Products]:
        """The matrix products of a pass of the compact path."""
        config, chunk = self.module.draft_model.config, rows_at_once(self.device)
        return [product for plan in self.plans() for product in unroll_products(config, plan, head_chunk_rows=chunk)]

    def plans(self) -> list[UnrollPlan]:
        """What the compact path computes of each batch."""
        host, steps = torch.device("cpu"), self._preset.ttt_steps
        return [
            plan_unroll(batch.packed.on_host(), steps, probs_are_compact=True, device=host) for batch in self.batches
        ]


def compact_rows(workload: Workload, cache: Cache, ttt_steps: int) -> tuple[tuple[Row, ...], ...]:
    """Micro-batches of packed rows, as training cuts them."""
    limits = PackingLimits(pack_length=workload.pack_length, micro_batch_tokens=workload.micro_batch_tokens)
    objective = Eagle3Objective(Eagle3TrainConfig(ttt_steps=ttt_steps))
    costs = objective.costs(cache.index, num_layers=1, training=True)
    return micro_batches(np.arange(cache.num_samples), cache.index.num_tokens, costs, limits)


def padded_rows(workload: Workload, cache: Cache) -> tuple[tuple[Row, ...], ...]:
    """Batches of so many samples in corpus order, a row each."""
    rows = [(sample,) for sample in range(cache.num_samples)]
    size = workload.reference_rows
    return tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))


def load_all(
    cache: Cache, rows: tuple[tuple[Row, ...], ...], *, ttt_steps: int, device: torch.device
) -> tuple[list[EncodedBatch], PathSizes]:
    """All batches at once, through the loader of training."""
    plan = StepPlan(samples=np.arange(cache.num_samples), micro_batches=rows, after=DataPosition())
    with Loader(cache, [plan], draw=draw_slots(ttt_steps), device=device, prefetch_batches=len(rows)) as loader:
        ((header, batches),) = ((header, list(batches)) for header, batches in loader)
    sizes = PathSizes(
        tokens=header.num_tokens,
        supervised_tokens=header.num_supervised,
        slots=header.num_slots,
        counts=header.counts,
    )
    return batches, sizes


def make_module(
    shape: TargetShape, cache: Cache, ttt_steps: int, implementation: Implementation
) -> Eagle3TrainerModule:
    """A trainer module around a draft of one layer in the target's shape, embeddings frozen."""
    return Eagle3TrainerModule(
        build_eagle3_draft(cache, draft_settings(shape), seed=0),
        cache.vocab.selected_token_ids,
        cache.vocab.selected_token_mask,
        ttt_steps,
        implementation=implementation,
    )


def draft_settings(shape: TargetShape) -> Eagle3DraftConfig:
    return Eagle3DraftConfig(intermediate_size=shape.intermediate_size)


def train_settings(preset: StepPreset, workload: Workload, num_tokens: int) -> Eagle3TrainConfig:
    """Settings of a training run over the workload, an optimizer step an epoch."""
    return Eagle3TrainConfig(
        ttt_steps=preset.ttt_steps,
        batch_tokens=max(num_tokens, workload.micro_batch_tokens),
        micro_batch_tokens=workload.micro_batch_tokens,
        pack_length=workload.pack_length,
        device=preset.device,
        dtype=preset.dtype,
    )
