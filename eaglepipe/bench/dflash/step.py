"""One workload through both implementations of a DFlash step: the same batches, blocks and draft.

A pass is forward and backward of every batch; supervision is decoded, with the target's head, while the clock runs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from eaglepipe.bench.step_presets import StepPreset, Workload
from eaglepipe.bench.timing import Spent, spent
from eaglepipe.cache.reader import Cache
from eaglepipe.eagle.dflash.anchors import DrawnBlocks, draw_blocks
from eaglepipe.eagle.dflash.inputs import BlockInputs
from eaglepipe.eagle.dflash.losses import BlockTargets, block_loss
from eaglepipe.eagle.dflash.trainer import DFlashTrainerModule
from eaglepipe.eagle.dflash.visibility import BlockVisibility
from eaglepipe.recipe.block_settings import DflashDraftConfig, DflashTrainConfig
from eaglepipe.training.data.batch import (
    DataPosition,
    EncodedBatch,
    PackingLimits,
    StepHeader,
    StepPlan,
)
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import micro_batches
from eaglepipe.training.objectives.dflash import DflashObjective
from eaglepipe.training.objectives.dflash_builder import build_dflash_draft
from eaglepipe.training.run.precision import COMPUTE_DTYPES

NUM_AUX, NUM_LAYERS, MAX_ANCHORS = 5, 5, 64


class PlainVisibility(BlockVisibility):
    """The same rule as one dense mask over all queries and keys."""

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """As `BlockAttention`."""
        return scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=self.dense(),
            scale=scale,
            enable_gqa=keys.shape[1] != queries.shape[1],
        )


class DflashStep:
    """A workload's batches, and one draft that both of our implementations train."""

    def __init__(self, preset: StepPreset, workload: Workload, cache: Cache, device: torch.device) -> None:
        self.cache, self.device, self.dtype = cache, device, COMPUTE_DTYPES[preset.dtype]
        self.config = DflashTrainConfig(
            batch_tokens=max(int(cache.index.num_tokens.sum()), workload.micro_batch_tokens),
            micro_batch_tokens=workload.micro_batch_tokens,
            pack_length=workload.pack_length,
            max_anchors=MAX_ANCHORS,
            labels="top1",
            device=preset.device,
            dtype=preset.dtype,
        )
        shape = DflashDraftConfig(
            num_hidden_layers=NUM_LAYERS,
            intermediate_size=preset.shape.intermediate_size,
            mask_token_id=preset.shape.vocab_size - 1,
        )
        self.draft: Any = build_dflash_draft(cache, shape, seed=0, **self.config.draft_options)
        objective = DflashObjective(self.config)
        self._decode = objective.make_decoder(cache, device=device, dtype=self.dtype)
        module: Any = objective.make_module(self.draft, cache)
        self.module: DFlashTrainerModule = module.to(device).train()
        limits = PackingLimits(pack_length=workload.pack_length, micro_batch_tokens=workload.micro_batch_tokens)
        self.header, self.batches = self._load(objective, limits)

    def _load(self, objective: DflashObjective, limits: PackingLimits) -> tuple[StepHeader, list[EncodedBatch]]:
        index, samples = self.cache.index, np.arange(self.cache.num_samples)
        costs = objective.costs(index, num_layers=NUM_LAYERS, training=True)
        rows = micro_batches(samples, index.num_tokens, costs, limits)
        plan = StepPlan(samples=samples, micro_batches=rows, after=DataPosition())
        draw = partial(objective.draw, training=True)
        with Loader(
            self.cache,
            [plan],
            draw=draw,
            device=self.device,
            prefetch_batches=len(rows),
            columns=objective.columns,
        ) as loader:
            ((header, batches),) = ((header, list(batches)) for header, batches in loader)
        return header, batches

    @property
    def num_guesses(self) -> int:
        """Guesses in the loss of a pass."""
        return int(self.header.counts.sum())

    def inputs(self, batch: EncodedBatch) -> tuple[BlockInputs, torch.Tensor]:
        """Decode a batch; return it with the seeds of its blocks."""
        decoded: Any = self._decode(batch)
        return decoded["inputs"], decoded["anchor_seeds"]

    def drawn(self, batch: EncodedBatch) -> DrawnBlocks:
        """Return the blocks of a batch."""
        seeds = batch.extras["anchor_seeds"]
        return draw_blocks(batch.packed.on_host(), self.module.settings, seeds[seeds >= 0].tolist())

    def run_compact(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass; return what it took and the summed loss of all guesses, weighted by position, float64."""
        return self._run(self._compact)

    def run_plain(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass that computes every slot of every block, with whole logits and a dense mask."""
        return self._run(self._plain)

    def _run(self, step: Callable[[EncodedBatch], torch.Tensor]) -> tuple[Spent, torch.Tensor]:
        total, sums = Spent(), torch.zeros((), dtype=torch.float64)
        for batch in self.batches:
            one, loss = spent(partial(self._backward, step, batch), self.device)
            total, sums = total + one, sums + loss.detach().cpu().double()
        self.draft.zero_grad(set_to_none=True)
        return total, sums

    def _backward(self, step: Callable[[EncodedBatch], torch.Tensor], batch: EncodedBatch) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss: torch.Tensor = step(batch)
        loss.backward()
        return loss

    def _compact(self, batch: EncodedBatch) -> torch.Tensor:
        inputs, seeds = self.inputs(batch)
        ones = torch.ones(self.config.depths, device=self.device)
        return self.module.compute_loss(inputs, normalizers=ones, anchor_seeds=seeds).loss

    def _plain(self, batch: EncodedBatch) -> torch.Tensor:
        inputs, _ = self.inputs(batch)
        packed, drawn, size = inputs.batch, self.drawn(batch), self.config.block_size
        anchors = drawn.anchors.to(self.device)
        positions, slots = (
            packed.position_ids.flatten(),
            torch.arange(size, device=self.device),
        )
        visibility = PlainVisibility(
            starts=drawn.starts,
            stops=drawn.anchors + 1,
            num_context=len(positions),
            width=size,
            device=self.device,
        )
        tokens = packed.input_ids.flatten()[anchors][:, None]
        states = self.draft(
            torch.where(slots == 0, tokens, self.draft.config.mask_token_id),
            positions[anchors][:, None] + 1 + slots,
            self.draft.project_hidden_states(inputs.aux_hidden_states.flatten(0, 1)),
            positions,
            visibility,
        )
        logits = self.draft.compute_logits(states).unflatten(0, (len(anchors), size))
        assert isinstance(inputs.target_probs, torch.Tensor)
        row_of_slot = packed.loss_mask.flatten().long().cumsum(0) - 1
        references = (anchors[:, None] + slots - 1).clamp(max=len(positions) - 1)
        mask = (slots - 1 < drawn.lengths.to(self.device)[:, None]) & (slots > 0)
        labels = inputs.target_probs.argmax(dim=-1)[row_of_slot[references].clamp(min=0)]
        return block_loss(self.module.loss, logits, BlockTargets(mask=mask, labels=labels)).loss
