"""AdamW over float32 parameters, its learning rate as a pure function of the step, and its state as named tensors."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.run.ranks.sharding import sharded_like

ADAM_EPSILON = 1e-8


def learning_rate(step: int, *, total_steps: int, config: TrainConfig) -> float:
    """Return the rate of step `step`, from 0: linear warm-up to the peak, then a cosine down to the minimum ratio."""
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    low = config.min_learning_rate_ratio
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that take gradients, by name, so without frozen embeddings."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return an AdamW in which only matrices decay: not norms, biases or embeddings.

    Every parameter must be float32: lower precision is left to autocast.
    """
    parameters = trainable_parameters(model)
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in parameters.values() if p.ndim >= 2 and id(p) not in embeddings]
    decaying = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in parameters.values() if id(parameter) not in decaying]
    decays = [(matrices, config.weight_decay), (others, 0.0)]
    groups = [
        {"params": chosen, "weight_decay": decay}
        for members, decay in decays
        for sharded in (False, True)  # operations over a group take no mixture
        if (chosen := [parameter for parameter in members if isinstance(parameter, DTensor) == sharded])
    ]
    on_cuda = any(parameter.is_cuda for parameter in parameters.values())
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=ADAM_EPSILON,
        fused=on_cuda,
    )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as `<state>.<parameter>`, without anything that must be unpickled."""
    return {
        f"{key}.{name}": value
        for name, parameter in trainable_parameters(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Restore the state that `optimizer_tensors` returned, bit for bit, on each parameter's device and in its shards.

    Raises:
        KeyError, ValueError: for state of another draft.
    """
    parameters = trainable_parameters(model)
    for full_name, value in tensors:
        key, _, name = full_name.partition(".")
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"{full_name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        if value.ndim:
            optimizer.state[parameter][key] = sharded_like(value, parameter)
        else:
            on_host = key == "step" and not optimizer.defaults["fused"]
            optimizer.state[parameter][key] = value.to("cpu" if on_host else parameter.device, copy=True)
