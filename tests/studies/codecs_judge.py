"""A trained draft on held-out samples of the exact cache: cross-entropy, acceptance of greedy and of drawn drafts."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.data.batch import PackingLimits, TrainingSource
from eaglepipe.training.data.packing import plan_evaluation
from eaglepipe.training.objectives.interface import make_objective
from eaglepipe.training.run.heldout import planned_batches
from eaglepipe.training.run.metrics import acceptance_length
from eaglepipe.training.run.precision import compute_dtype
from eaglepipe.training.run.ranks.distributed import World

WITH_ALPHAS = {"loss": "lambda", "lk_scale": 1.0, "lk_decay": 0.0}
"""Settings under which the loss is plain cross-entropy, w = 1, and yet every alpha is measured."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Over all held-out samples."""

    samples: int
    loss: float
    acceptance_length: float  # simulated chain of greedy drafts against the target's greedy tokens
    sampled_acceptance_length: float  # of drafts drawn from the draft, kept as speculative sampling keeps them


@torch.no_grad()
def judge(
    draft: PreTrainedModel,
    source: TrainingSource,
    samples: NDArray[np.int64],
    *,
    config: TrainConfig,
    limits: PackingLimits,
    world: World,
) -> Judgement:
    """Measure an EAGLE-3 draft on `samples` of `source`, temperature 0 and 1."""
    config = config.evaluated.model_copy(update=WITH_ALPHAS)
    objective = make_objective(config)
    module = objective.make_module(draft, source).to(world.device).eval()
    decode = objective.make_decoder(source, device=world.device, dtype=compute_dtype(config, world.device))
    costs = objective.costs(source.index, num_layers=draft.config.num_hidden_layers, training=False)
    names = ("loss_sums", "counts", "hits", "sampled_hits", "valid")
    totals = torch.zeros(len(names), config.depths, dtype=torch.float64)
    num_tokens = source.index.num_tokens
    plans = plan_evaluation(samples, num_tokens, costs, batch_tokens=config.batch_tokens, limits=limits)
    for batch in planned_batches(objective, source, plans, config=config, world=world):
        metrics = module.compute_loss(**decode(batch.to(world.device)))
        totals += torch.stack([getattr(metrics, name).double().cpu() for name in names])
    loss_sums, counts, hits, sampled, valid = totals
    weights = torch.tensor(objective.loss_weights, dtype=torch.float64)
    return Judgement(
        samples=len(samples),
        loss=float((weights * loss_sums / objective.normalizers(counts)).sum()),
        acceptance_length=acceptance_length(hits.tolist(), valid.tolist()),
        sampled_acceptance_length=acceptance_length(sampled.tolist(), valid.tolist()),
    )
