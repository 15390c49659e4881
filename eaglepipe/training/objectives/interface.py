"""The interface of an objective to loader, learner, loop and evaluation.

An objective trains over K depths: TTT steps, P-EAGLE depths, or the chain that an evaluation follows. Its loss is

    sum_k loss_weights[k] · loss_sums[k] / normalizers(counts)[k]

with `loss_sums` and `counts` summed over all micro-batches and ranks. The counts are known before the first forward of
a step, because `draw` makes every random choice on the host, from metadata and a seed. So each micro-batch is divided
by the counts of the whole step, and a step does not depend on how its samples are split into micro-batches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from transformers import PreTrainedModel

from eaglepipe.cache.types import SampleIndex
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.data.batch import BatchColumns, EncodedBatch, TrainingSource
from eaglepipe.training.data.collate import PackedDocuments
from eaglepipe.training.data.costs import Costs

Decoder = Callable[[EncodedBatch], dict[str, Any]]
"""From an encoded batch on the device to the keyword arguments of the trainer's `compute_loss`, but `normalizers`."""


@dataclass(frozen=True, kw_only=True)
class BatchDraw:
    """Loss counts and random choices of a micro-batch, made on the host in the loading thread."""

    counts: torch.Tensor  # int64 [K], elements in the loss at each depth
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Host tensors that travel with the batch as `EncodedBatch.extras`, so that the decoder gets them on the device."""


DrawFn = Callable[[PackedDocuments, int], BatchDraw]
"""`Objective.draw` with `training` bound: (documents of a micro-batch, epoch) -> its draw."""


class StepMetrics(Protocol):
    """Result of a trainer module's forward, [K] except `loss`, which alone carries a gradient."""

    @property
    def loss(self) -> torch.Tensor: ...  # float32 [], this batch's share of the objective's loss

    @property
    def loss_sums(self) -> torch.Tensor: ...  # float32, summed over the elements of each depth

    @property
    def counts(self) -> torch.Tensor: ...  # int64, elements in the loss; their sum over batches is that of `draw`

    @property
    def correct(self) -> torch.Tensor: ...  # int64, greedy draft token equal to the target's, among `counts`

    @property
    def hits(self) -> torch.Tensor: ...  # int64, slots whose first k+1 greedy drafts all match

    @property
    def valid(self) -> torch.Tensor: ...  # int64, slots supervised at every depth up to k


class TrainerModule(Protocol):
    """The part of a trainer module, an `nn.Module`, that learners use."""

    @property
    def compute_loss(self) -> Callable[..., Any]: ...  # (**decoded, normalizers: [K] or None) -> StepMetrics

    def to(self, device: torch.device, /) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


class Objective(Protocol):
    """One way to train a draft, bound to a run's `train` section."""

    @property
    def needs_mean_alphas(self) -> bool:
        """Whether `compute_loss` takes `mean_alphas`, the acceptance of the step before."""
        ...

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """K weights, one per depth."""
        ...

    @property
    def columns(self) -> BatchColumns:
        """Columns of the cache that a batch carries."""
        ...

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """Return the relative compute cost of each sample, [N]; ranks and micro-batches get about equal sums of it.

        Args:
            num_layers: of the draft.
            training: False if the samples are held out.
        """
        ...

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        """Return the positive divisors [K] of the loss sums, from counts [K] over all micro-batches and ranks."""
        ...

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> TrainerModule:
        """Return the trainer module of a draft, which behaves by its train or eval mode."""
        ...

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        """Return the function that decodes batches on the training device, with activations in `dtype`."""
        ...

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> BatchDraw:
        """Count the elements in the loss, and make all random choices.

        A pure function of the run's seed, the epoch and each document's `sample_id` and columns: never of rows,
        micro-batches, ranks, threads or earlier calls. With `training` false (held-out samples, epoch 0) it is the
        same at every evaluation. A batch without documents has counts [K] of 0.
        """
        ...


def make_objective(config: TrainConfig) -> Objective:
    """Return the objective of the recipe's family."""
    objective: Objective = config.family.load(config.family.objective)(config)
    return objective
