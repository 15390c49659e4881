"""One workload through both implementations of the trainer module: the same samples, seen as rows two ways.

The compact path takes them packed as training packs them, the reference in corpus order, padded to the longest of a
batch. Supervision is decoded before the clock starts, for both; a pass is forward and backward of every batch.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from eaglepipe.bench.products import Products, unroll_products
from eaglepipe.bench.step_presets import StepPreset, Workload
from eaglepipe.bench.timing import Spent, spent, timed
from eaglepipe.cache.reader import Cache
from eaglepipe.eagle.core import Eagle3TrainerModule
from eaglepipe.eagle.kernels.fused_head import rows_at_once
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.slot_plan import UnrollPlan, plan_unroll
from eaglepipe.recipe.family_settings import Eagle3DraftConfig, Eagle3TrainConfig
from eaglepipe.training.data.batch import DataPosition, EncodedBatch, PackingLimits, Row, StepHeader, StepPlan
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import micro_batches
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.builders import build_eagle3_draft
from eaglepipe.training.objectives.eagle3 import Eagle3Objective, draw_slots
from eaglepipe.training.run.precision import COMPUTE_DTYPES

Implementation = Literal["compact", "reference"]


@dataclass(frozen=True, kw_only=True)
class StepSetup:
    """A workload of a preset, with its cache, on a device."""

    preset: StepPreset
    workload: Workload
    cache: Cache
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return COMPUTE_DTYPES[self.preset.dtype]

    @property
    def limits(self) -> PackingLimits:
        return PackingLimits(pack_length=self.workload.pack_length, micro_batch_tokens=self.workload.micro_batch_tokens)

    def draft_config(self) -> Eagle3DraftConfig:
        return Eagle3DraftConfig(intermediate_size=self.preset.shape.intermediate_size)

    def train_config(self) -> Eagle3TrainConfig:
        """Return the settings of a training run over the workload, an optimizer step an epoch."""
        return Eagle3TrainConfig(
            ttt_steps=self.preset.ttt_steps,
            batch_tokens=max(int(self.cache.index.num_tokens.sum()), self.workload.micro_batch_tokens),
            micro_batch_tokens=self.workload.micro_batch_tokens,
            pack_length=self.workload.pack_length,
            device=self.preset.device,
            dtype=self.preset.dtype,
        )


class StepPath:
    """One implementation with a draft of its own and all batches of a workload, encoded, on the device."""

    def __init__(self, setup: StepSetup, implementation: Implementation) -> None:
        self.setup, self._implementation = setup, implementation
        rows = packed_rows(setup) if implementation == "compact" else padded_rows(setup)
        self.header, self.batches = load_all(setup, rows)
        module = Eagle3TrainerModule(
            build_eagle3_draft(setup.cache, setup.draft_config(), seed=0),
            setup.cache.vocab.selected_token_ids,
            setup.cache.vocab.selected_token_mask,
            setup.preset.ttt_steps,
            implementation=implementation,
        )
        self.module = module.to(setup.device).train()
        self._decoder = SupervisionDecoder(setup.cache, device=setup.device, dtype=setup.dtype)

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return 1 - self.header.num_tokens / self.header.num_slots

    def run_all(self) -> tuple[float, torch.Tensor]:
        """Run one pass; return the seconds of its forwards and backwards, and each step's summed loss, float64 [K]."""
        seconds, loss_sums = 0.0, torch.zeros(self.setup.preset.ttt_steps, dtype=torch.float64)
        for batch in self.batches:
            batch_seconds, batch_sums = timed(partial(self.step, self.decode(batch)), self.setup.device)
            seconds += batch_seconds
            loss_sums += batch_sums.cpu().double()
        self.module.zero_grad(set_to_none=True)
        return seconds, loss_sums

    def run_decoded(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass with the decoding of supervision, the target's head in it; return as `run_all`."""
        total, loss_sums = Spent(), torch.zeros(self.setup.preset.ttt_steps, dtype=torch.float64)
        for batch in self.batches:
            one, batch_sums = spent(partial(self._decoded_step, batch), self.setup.device)
            total, loss_sums = total + one, loss_sums + batch_sums.cpu().double()
        self.module.zero_grad(set_to_none=True)
        return total, loss_sums

    def _decoded_step(self, batch: EncodedBatch) -> torch.Tensor:
        return self.step(self.decode(batch))

    def decode(self, batch: EncodedBatch) -> TrainerInputs:
        """Decode the module's inputs; the padded reference needs none of the packing."""
        inputs = self._decoder.decode(batch)
        if self._implementation == "compact":
            return inputs
        padded = replace(inputs.batch, seq_lens=None, doc_remaining=None, host_copy=None)
        return replace(inputs, batch=padded)

    def step(self, inputs: TrainerInputs) -> torch.Tensor:
        """Run forward and backward of one batch; return each step's summed loss, float32 [K]."""
        device, dtype = self.setup.device, self.setup.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            metrics = self.module.compute_loss(inputs, normalizers=self.header.counts.clamp(min=1).to(device))
        metrics.loss.backward()
        return metrics.loss_sums

    def largest(self) -> EncodedBatch:
        """Return the batch of most slots, and of most losses among those."""
        return max(
            self.batches, key=lambda batch: (batch.packed.input_ids.numel(), int(batch.packed.position_mask.sum()))
        )

    def products(self) -> list[Products]:
        """Return the matrix products of a pass of the compact path."""
        config, chunk = self.module.draft_model.config, rows_at_once(self.setup.device, self.setup.dtype)
        return [product for plan in self.plans() for product in unroll_products(config, plan, head_chunk_rows=chunk)]

    def plans(self) -> list[UnrollPlan]:
        """Return the compact path's plan of each batch."""
        host, steps = torch.device("cpu"), self.setup.preset.ttt_steps
        return [
            plan_unroll(batch.packed.on_host(), steps, probs_are_compact=True, device=host) for batch in self.batches
        ]


def packed_rows(setup: StepSetup) -> tuple[tuple[Row, ...], ...]:
    """Return micro-batches of packed rows, as training cuts them."""
    config, index = setup.train_config(), setup.cache.index
    costs = Eagle3Objective(config).costs(index, num_layers=1, training=True)
    return micro_batches(np.arange(setup.cache.num_samples), index.num_tokens, costs, setup.limits)


def padded_rows(setup: StepSetup) -> tuple[tuple[Row, ...], ...]:
    """Return batches of `reference_rows` samples in corpus order, a row each."""
    rows = [(sample,) for sample in range(setup.cache.num_samples)]
    size = setup.workload.reference_rows
    return tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))


def load_all(setup: StepSetup, rows: tuple[tuple[Row, ...], ...]) -> tuple[StepHeader, list[EncodedBatch]]:
    """Load all batches at once, through the loader of training."""
    plan = StepPlan(samples=np.arange(setup.cache.num_samples), micro_batches=rows, after=DataPosition())
    draw = draw_slots(setup.preset.ttt_steps)
    with Loader(setup.cache, [plan], draw=draw, device=setup.device, prefetch_batches=len(rows)) as loader:
        ((header, batches),) = ((header, list(batches)) for header, batches in loader)
    return header, batches
