"""Sharded training by torch's FSDP2: a rank keeps its rows of every matrix, of its gradient and of its moments.

All matrices are one group: trainer modules read weights of many layers, many times, outside of any module's forward.
They are gathered once an optimizer step, in the compute dtype; gradients are summed and scattered after each
micro-batch, in float32. Norms, biases and other small parameters stay whole, in float32, on every rank.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from eaglepipe.files.hashing import FileDigest
from eaglepipe.files.tensors import publish_tensor_stream, stream_order
from eaglepipe.training.objectives.interface import StepMetrics, TrainerModule
from eaglepipe.training.run.ranks.distributed import World


class ShardedTrainer(nn.Module):
    """A trainer module whose draft is sharded over the ranks, all of which call each method together."""

    def __init__(self, trainer: TrainerModule, world: World, *, dtype: torch.dtype) -> None:
        """Shard the parameters of `trainer` in place; optimizers are made after that.

        Args:
            dtype: of the gathered matrices, as activations have it.
        """
        super().__init__()
        self._trainer: Any = trainer
        self._device = world.device
        kept_whole = {parameter for parameter in self.parameters() if not _has_rows_for_all(parameter, world.size)}
        fully_shard(
            self,
            mesh=init_device_mesh(world.device.type, (world.size,)),
            reshard_after_forward=False,
            mp_policy=MixedPrecisionPolicy(
                param_dtype=None if dtype == torch.float32 else dtype,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,  # autocast does that, for each operation as it needs
            ),
            ignored_params=kept_whole,
        )
        self._group.set_gradient_divide_factor(1.0)  # the loss of a micro-batch is divided by the whole step's counts
        self._group.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        self._group.set_reduce_scatter_unused_params(True)  # ranks may reach different parameters
        self._group.set_reshard_after_backward(False)

    @property
    def _group(self) -> FSDPModule:
        assert isinstance(self, FSDPModule)
        return self

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold all parameters whole inside the block."""
        self._group.unshard()
        try:
            yield
        finally:
            self._group.reshard()

    def forward(self, arguments: Mapping[str, Any] | None) -> StepMetrics | torch.Tensor:
        """Return the metrics of `compute_loss`, or without arguments a loss that no parameter takes part in.

        Every rank has to compute and go backward as often as all others, since that is when gradients are summed.
        """
        nothing = torch.zeros((), device=self._device, requires_grad=True)
        if arguments is None:
            return nothing * 1.0
        metrics: Any = self._trainer.compute_loss(**arguments)
        return metrics if metrics.loss.requires_grad else replace(metrics, loss=metrics.loss + nothing)


def _has_rows_for_all(parameter: nn.Parameter, num_ranks: int) -> bool:
    return parameter.ndim == 2 and len(parameter) >= num_ranks


def own_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's rows of a sharded tensor, in its memory; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor whole, gathered from all ranks, which have to call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a copy of a whole tensor on the parameter's device, sharded if that is; without communication."""
    moved = whole.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def publish_shards(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileDigest:
    """Publish a file of whole tensors on rank 0, one gathered at a time, while all others send theirs.

    Raises:
        ResourceError: full disk.
    """
    return publish_tensor_stream(path, tensors, all_rows)


def send_shards(tensors: Mapping[str, torch.Tensor]) -> None:
    """Send this rank's rows of the tensors that rank 0 publishes."""
    for name in stream_order(tensors):
        all_rows(tensors[name])
