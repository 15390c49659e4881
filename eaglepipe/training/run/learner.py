"""The learner: trainer module, optimizer and decoder on one device; one call an optimizer step."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from transformers import PreTrainedModel

from eaglepipe.cache.types import SampleIndex
from eaglepipe.eagle.kernels.transfer import to_device
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.data.batch import EncodedBatch, TrainingSource
from eaglepipe.training.data.costs import Costs, blockwise_costs
from eaglepipe.training.objectives.interface import StepMetrics, make_objective
from eaglepipe.training.objectives.mean_alphas import NAME as MEAN_ALPHAS
from eaglepipe.training.objectives.mean_alphas import MeanAlphas
from eaglepipe.training.run.gradients import clip_gradients, sum_gradients
from eaglepipe.training.run.optim import (
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    trainable_parameters,
)
from eaglepipe.training.run.precision import compute_dtype
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.ranks.sequence import share_sequences
from eaglepipe.training.run.ranks.sharding import ShardedTrainer, own_rows, sharded_like


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Metrics of forwards by depth, added over micro-batches and then over ranks: float64 [K] each."""

    loss_sums: torch.Tensor
    counts: torch.Tensor
    correct: torch.Tensor
    hits: torch.Tensor
    valid: torch.Tensor

    @staticmethod
    def zeros(num_depths: int, device: torch.device) -> "Counters":
        return Counters.of(torch.zeros(5, num_depths, dtype=torch.float64, device=device))

    @staticmethod
    def of(rows: Iterable[torch.Tensor]) -> "Counters":
        return Counters(**dict(zip(COUNTER_NAMES, rows, strict=True)))

    def stacked(self) -> torch.Tensor:
        """Return all rows as one tensor [5, K], as `of` takes it."""
        return torch.stack([getattr(self, name) for name in COUNTER_NAMES])

    def __add__(self, other: "Counters") -> "Counters":
        return Counters.of(self.stacked() + other.stacked())


COUNTER_NAMES = tuple(field.name for field in fields(Counters))


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """This rank's part of an optimizer step, still on the device so that nothing waits for it."""

    loss: torch.Tensor  # float32 [], this rank's share of the token-weighted loss
    grad_norm: torch.Tensor  # float32 [], of the summed gradients before clipping
    counters: Counters


class Learner:
    """A draft in training."""

    def __init__(self, source: TrainingSource, draft: PreTrainedModel, config: TrainConfig, world: World) -> None:
        self._config, self._world = config, world
        self._dtype = compute_dtype(config, world.device)
        self.objective = make_objective(config)
        self.num_depths = len(self.objective.loss_weights)
        self.draft = draft.to(world.device)
        self.module = self.objective.make_module(self.draft, source).to(world.device)
        self._decode = self.objective.make_decoder(source, device=world.device, dtype=self._dtype)
        shards = config.shard and world.size > 1
        self._shards = ShardedTrainer(self.module, world, dtype=self._dtype) if shards else None
        self._optimizer = make_optimizer(self.draft, config)
        self._alphas = MeanAlphas(self.num_depths, world) if self.objective.needs_mean_alphas else None
        self.evaluation = make_objective(config.evaluated)
        as_trained = config.evaluated == config
        self._measured = self.module if as_trained else self.evaluation.make_module(self.draft, source).to(world.device)
        share_sequences((self.module, self._measured), config, world)

    @property
    def is_sharded(self) -> bool:
        """Whether this rank holds a part of the parameters only, so that saving them takes all ranks."""
        return self._shards is not None

    def step(
        self,
        batches: Iterable[EncodedBatch],
        counts: torch.Tensor,
        learning_rate: float,
        before_update: Callable[[], object] = lambda: None,
        *,
        rounds: int = 0,
    ) -> StepOutcome:
        """Take one optimizer step.

        Args:
            batches: this rank's micro-batches, possibly none.
            counts: int64 [K], elements in the loss at each depth over all micro-batches and ranks.
            rounds: the most micro-batches that a rank has; with shards, the others take part in as many.
            before_update: is called when all gradients are there, before anything that a checkpoint holds changes.
        """
        self.module.train()
        normalizers = to_device(self.objective.normalizers(counts), self._world.device)
        loss = torch.zeros((), device=self._world.device)
        counters = Counters.zeros(self.num_depths, self._world.device)
        given = {"normalizers": normalizers, **({} if self._alphas is None else self._alphas.arguments())}
        with self._world.explained_losses(), self.gathered():
            for batch in self._completed(batches, rounds):
                if batch is None:
                    self._take_part()
                    continue
                metrics = self._learn({**self._arguments(batch), **given})
                loss += metrics.loss.detach()
                counters = counters + _counters(metrics)
                if self._alphas is not None:
                    self._alphas.add(metrics.alpha_sums)
        parameters = list(trainable_parameters(self.draft).values())
        sum_gradients(parameters, self._world)
        before_update()
        if self._alphas is not None:
            self._alphas.close(counts)
        grad_norm = clip_gradients(parameters, self._config.max_grad_norm, self._world)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutcome(loss=loss, grad_norm=grad_norm, counters=counters)

    def _completed(self, batches: Iterable[EncodedBatch], rounds: int) -> Iterable[EncodedBatch | None]:
        """The batches, and None for each further round that other ranks need this one for."""
        if self._shards is None:
            return batches
        return (batch for batch, _ in zip(chain(batches, repeat(None)), range(rounds), strict=False))

    def _learn(self, arguments: Mapping[str, Any]) -> Any:
        with self._autocast():
            metrics = self.module.compute_loss(**arguments) if self._shards is None else self._shards(arguments)
        if metrics.loss.requires_grad:
            metrics.loss.backward()
        return metrics

    def _take_part(self) -> None:
        assert self._shards is not None
        self._shards(None).backward()

    def gathered(self) -> AbstractContextManager[object]:
        """Hold all parameters whole inside the block, which all ranks enter together; `measure` needs that."""
        return nullcontext() if self._shards is None else self._shards.gathered()

    @torch.no_grad()
    def measure(self, batch: EncodedBatch) -> Counters:
        """Return the counters of a batch that is not learned from, by the depths of `evaluation`."""
        self._measured.eval()
        with self._autocast():
            return _counters(self._measured.compute_loss(**self._arguments(batch)))

    def costs(self, index: SampleIndex, *, training: bool) -> Costs:
        """Return the cost of training on each sample, or of measuring it, [N]."""
        objective = self.objective if training else self.evaluation
        layers = self.draft.config.num_hidden_layers
        return blockwise_costs(partial(objective.costs, num_layers=layers, training=training), index)

    def draft_tensors(self) -> dict[str, torch.Tensor]:
        """Return the float32 parameters that training changes, sharded if they are."""
        return {name: parameter.detach() for name, parameter in trainable_parameters(self.draft).items()}

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        carried = {} if self._alphas is None else self._alphas.tensors()
        return {**optimizer_tensors(self.draft, self._optimizer), **carried}

    def restore_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self._alphas is not None:
            self._alphas.restore(tensors)
        of_parameters = [name for name in tensors if name != MEAN_ALPHAS]
        load_optimizer_tensors(self.draft, self._optimizer, ((name, tensors[name]) for name in of_parameters))

    def restore_draft(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the parameters that `draft_tensors` returned, given whole."""
        restore_parameters(self.draft, tensors)

    def _arguments(self, batch: EncodedBatch) -> dict[str, Any]:
        return self._decode(batch.to(self._world.device))

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._world.device.type, self._dtype, enabled=self._dtype != torch.float32)


@torch.no_grad()
def restore_parameters(draft: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the trainable parameters of a draft, or this rank's rows of them, from whole tensors.

    Raises:
        KeyError, ValueError: for those of another draft.
    """
    for name, parameter in trainable_parameters(draft).items():
        if tensors[name].shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
        own_rows(parameter).copy_(own_rows(sharded_like(tensors[name], parameter)))


def _counters(metrics: StepMetrics) -> Counters:
    return Counters.of(getattr(metrics, name).detach().double() for name in COUNTER_NAMES)
