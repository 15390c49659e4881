"""The processes of a run under torchrun: ranks, devices and sums over ranks; without torchrun, a single process."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from eaglepipe.devices import resolve_device
from eaglepipe.errors import ConfigError, LostRankError, StoppedError, first_line
from eaglepipe.stop_watch import end_process
from eaglepipe.training.run.ranks.meeting import meet
from eaglepipe.training.run.ranks.peer_watch import PeerWatch
from eaglepipe.training.run.ranks.peers import meet_peers

_CONNECTION = "gloo|nccl|connection|socket|broken pipe|timed out"
_CONTINUES = "everything up to the last checkpoint is saved, run it again to continue"


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, and the rank of this one."""

    device: torch.device
    rank: int = 0
    size: int = 1
    watch: PeerWatch | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks, on every rank, on the host."""
        if self.size == 1:
            return values.cpu()
        total = values.to(self.device, copy=True)
        self.add_up(total)
        return total.cpu()

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace the tensor by its sum over ranks.

        Raises:
            LostRankError: another rank has ended; the message is empty on all ranks but one.
        """
        with self.explained_losses():
            dist.all_reduce(tensor)

    @contextmanager
    def explained_losses(self) -> Iterator[None]:
        """Turn errors of collectives inside the block into one about the rank that has ended.

        Raises:
            LostRankError: as `add_up`.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.size == 1 or not _is_of_connection(error):
                raise
            raise _lost(first_line(error) if self.watch is None else self.watch.describe_end()) from None

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; every rank gets the same result."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([int(flag)])).item())

    def barrier(self) -> None:
        if self.size > 1:
            self.any(False)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the world that torchrun describes, or a single process; leave the process group at the end.

    Raises:
        ConfigError: CUDA is asked for and absent.
        LostRankError: the ranks do not find each other.
    """
    size, local_rank = _from_environment("WORLD_SIZE", 1), _from_environment("LOCAL_RANK", 0)
    own = resolve_device(device, local_rank=local_rank if size > 1 else None)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(device=own)
        return
    try:
        store, rank, _ = next(rendezvous("env://"))
        name = meet(store, rank, size)
        group = PrefixStore(f"{name}/group", store)
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", store=group, rank=rank, world_size=size)
        signs = PrefixStore(f"{name}/watch", store.clone())
        watch = PeerWatch(meet_peers(), signs, lambda text: end_process(_lost(text)))
    except (RuntimeError, ValueError) as error:
        raise LostRankError(f"the {size} ranks of this run do not meet: {first_line(error)}") from None
    watch.start()
    try:
        yield World(device=own, rank=rank, size=size, watch=watch)
    except LostRankError:
        raise  # to leave the group would mean to wait for a rank that has ended
    except StoppedError:  # all ranks do
        watch.stop()
        dist.destroy_process_group()
        raise
    except BaseException:
        watch.announce_end()
        if own.type != "cuda":  # NCCL would wait for the others
            dist.destroy_process_group()
        raise
    watch.stop()
    dist.destroy_process_group()


def _lost(text: str) -> LostRankError:
    """Return the error of a rank that has lost another one; without text, another rank reports it."""
    return LostRankError(text and f"{text}, so the run stops; {_CONTINUES}")


def _is_of_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed, and not the computation around it; gloo has no class of error of its own."""
    return isinstance(error, dist.DistError) or re.search(_CONNECTION, str(error), re.IGNORECASE) is not None


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} in the environment is not a number of processes or ranks")
    return int(text)
