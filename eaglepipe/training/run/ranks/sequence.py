"""Ranks that share each sample: consecutive ones form a group, and the groups are to data what ranks are otherwise."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from eaglepipe.eagle.sequence_share import SequenceShare
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.run.ranks.distributed import World


def check_ranks(config: TrainConfig, world: World) -> None:
    """Check that the ranks can be divided into groups.

    Raises:
        ConfigError: `train.sequence_parallel` does not divide their number.
    """
    if world.size % config.sequence_parallel:
        ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
        raise ConfigError(
            f"train.sequence_parallel is {config.sequence_parallel}, which does not divide the {ranks} of this run; "
            f"start a multiple of {config.sequence_parallel} (train --gpus, or torchrun --nproc-per-node), or change it"
        )


def sequence_share(config: TrainConfig, world: World) -> SequenceShare | None:
    """Return this rank's share of the samples of its group; None if it has them alone."""
    if config.sequence_parallel == 1:
        return None
    deepest = max(config.depths, config.evaluated.depths)
    return SequenceShare(rank=world.rank % config.sequence_parallel, size=config.sequence_parallel, reach=deepest - 1)


def share_sequences(modules: Iterable[Any], config: TrainConfig, world: World) -> None:
    """Let trainer modules share their batches with the other ranks of the group; all ranks call this together.

    A single process, which can only measure drafts of such runs, has all batches alone.

    Raises:
        DraftError: their draft cannot be shared.
    """
    size = config.sequence_parallel
    if size == 1 or world.size == 1:
        return
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world.size, size)]
    own = RankGroup(world=world, group=groups[world.rank // size], size=size)
    for module in modules:
        module.share_with(own)


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """A `SequenceGroup` of ranks; LostRankError if one of them has ended."""

    world: World
    group: Any
    size: int

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks, in their order."""
        gathered = rows.new_empty(self.size, *rows.shape)
        with self.world.explained_losses():
            dist.all_gather(list(gathered), rows.contiguous(), group=self.group)
        return gathered.flatten(0, 1)

    def sum_and_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of the sum."""
        parts = rows.contiguous().unflatten(0, (self.size, -1) if len(rows) else (self.size, 0))
        part = torch.empty_like(parts[0])
        with self.world.explained_losses():
            dist.reduce_scatter(part, list(parts), group=self.group)
        return part
