"""What an objective supplies, so that loader, learner, loop and evaluation need not know which one they serve.

An objective trains over K depths (TTT steps, P-EAGLE depths, or the chain that an evaluation follows). Its loss is

    sum_k loss_weights[k] · loss_sums[k] / normalizers(counts)[k]

with `loss_sums` and `counts` added over all micro-batches and ranks. The counts are known before the first forward of a
step, because `draw` decides on the host, from metadata and a seed, everything that is random; so each micro-batch can
be divided by the whole step's numbers, and a step does not depend on how its samples were cut.
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
class Drawn:
    """What is decided about a micro-batch on the host, in the loading thread."""

    counts: torch.Tensor  # int64 [K], elements in the loss at each depth
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Host tensors that travel with the batch, as `EncodedBatch.extras`, and reach the decoder on the device."""


Draw = Callable[[PackedDocuments, int], Drawn]
"""(documents of a micro-batch, epoch) -> what is decided about it."""


class StepMetrics(Protocol):
    """What a trainer module's forward returns; only `loss` carries a gradient. Rows are [K]."""

    @property
    def loss(self) -> torch.Tensor: ...  # float32 [], this batch's share of the objective's loss

    @property
    def loss_sums(self) -> torch.Tensor: ...  # float32, summed over the elements of each depth

    @property
    def counts(self) -> torch.Tensor: ...  # int64, elements in the loss; added up they are those of `draw`

    @property
    def correct(self) -> torch.Tensor: ...  # int64, greedy draft token equal to the target's, among `counts`

    @property
    def hits(self) -> torch.Tensor: ...  # int64, slots whose first k+1 greedy drafts all match

    @property
    def valid(self) -> torch.Tensor: ...  # int64, slots supervised at every depth up to k


class TrainerModule(Protocol):
    """What a learner calls of a trainer module, an `nn.Module`."""

    @property
    def compute_loss(self) -> Callable[..., Any]: ...  # (**decoded, normalizers: [K] or None) -> StepMetrics

    def to(self, device: torch.device, /) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


class Objective(Protocol):
    """One way to train a draft, bound to a run's `train` section."""

    @property
    def needs_mean_alphas(self) -> bool:
        """Whether the trainer module takes the mean acceptance of the step before."""
        ...

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """One weight a depth, so K of them."""
        ...

    @property
    def columns(self) -> BatchColumns:
        """Which of the cache's columns a batch carries."""
        ...

    def costs(self, index: SampleIndex, *, num_layers: int, training: bool) -> Costs:
        """What each sample costs to compute, [N], in one unit: ranks and micro-batches get about equal sums of it.

        Args:
            num_layers: of the draft.
            training: False where the samples are held out.
        """
        ...

    def normalizers(self, counts: torch.Tensor) -> torch.Tensor:
        """Counts over all micro-batches and ranks, [K] -> what the depths' loss sums are divided by, [K], never 0."""
        ...

    def make_module(self, draft: PreTrainedModel, source: TrainingSource) -> TrainerModule:
        """Return the trainer module of a draft; it heeds train and eval."""
        ...

    def make_decoder(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        """What decodes batches on the training device, activations in `dtype`."""
        ...

    def draw(self, packed: PackedDocuments, epoch: int, *, training: bool) -> Drawn:
        """Count the elements in the loss, and draw whatever is random.

        A pure function of the run's seed, the epoch and each document's `sample_id` and columns: never of rows,
        micro-batches, ranks, threads or the calls before. With training false (held-out samples; epoch 0) it is also
        the same at every evaluation. A batch of no document at all is asked about too: counts of 0, still [K].
        """
        ...


def make_objective(config: TrainConfig) -> Objective:
    """Return the objective of the recipe's family."""
    objective: Objective = config.family.load(config.family.objective)(config)
    return objective
