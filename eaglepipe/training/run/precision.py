"""The dtype that a run computes in: chosen once, at its beginning, and kept on whatever machine it goes on."""

import torch

from eaglepipe.devices import auto_dtype
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.run.ranks.distributed import World

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NARROW = 384
"""Width below which bfloat16 does not pay on a processor: its library compiles a kernel for each number of rows. At a
width of 192 a step takes as long as in float32, in narrower drafts several times as long, at 512 about half as long."""


def choose_dtype(
    config: TrainConfig, world: World, *, width: int, begun: bool, recorded: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the name of a run's dtype, the same on all ranks, and notes about it if `train.dtype` is `auto`.

    Drafts narrower than `NARROW` compute in float32 on any processor, and several ranks in bfloat16 only if all of them
    are fast in it. A run that has `begun` keeps the dtype that its checkpoint has `recorded`. Those of earlier releases
    recorded none: `auto` was bfloat16 on CUDA and float32 on the CPU.
    """
    if config.dtype != "auto":
        return config.dtype, ()
    here, reason = auto_dtype(world.device)
    if here == "bfloat16" and world.device.type == "cpu" and width < NARROW:
        here, reason = "float32", f"bfloat16 does not pay for a draft of width {width}"
    if world.any(here != "bfloat16") and here == "bfloat16":
        here, reason = "float32", "another rank is slow in bfloat16"
    if not begun:
        return here, (f"train.dtype auto: {here}; {reason}",)
    kept = recorded or _earlier(world.device)
    better = "" if kept == here else f"; train.dtype={here} is faster here: {reason}"
    return kept, (f"train.dtype auto: {kept}, as the run began{better}",)


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of activations; `auto` is that of finished runs of earlier releases.

    Raises:
        ConfigError: float16, whose gradients would need scaling.
    """
    name = _earlier(device) if config.dtype == "auto" else config.dtype
    if name not in COMPUTE_DTYPES:
        raise ConfigError(f"train.dtype {name} is not supported; use bfloat16 or float32")
    return COMPUTE_DTYPES[name]


def _earlier(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" else "float32"
