import math

import pytest
import torch
from torch import nn

from eaglepipe.recipe.family_settings import Eagle3TrainConfig
from eaglepipe.training.run.optim import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    trainable_parameters,
)

CONFIG = Eagle3TrainConfig(learning_rate=1.0, min_learning_rate_ratio=0.1, warmup_ratio=0.2, weight_decay=0.5)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.fc = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)


def test_rate_rises_linearly_then_falls_as_a_cosine_to_the_minimum() -> None:
    rates = [learning_rate(step, total_steps=50, config=CONFIG) for step in range(50)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * i / 39)) for i in range(40)]
    assert rates[10:] == pytest.approx(expected)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_rate_of_very_short_runs_stays_within_its_bounds(total_steps: int) -> None:
    rates = [learning_rate(step, total_steps=total_steps, config=CONFIG) for step in range(total_steps)]
    assert all(0 < rate <= 1.0 for rate in rates)


def test_only_matrices_decay() -> None:
    model = Model()
    groups = make_optimizer(model, CONFIG).param_groups
    assert {id(p) for p in groups[0]["params"]} == {id(model.fc.weight)} and groups[0]["weight_decay"] == 0.5
    assert len(groups[1]["params"]) == 4 and groups[1]["weight_decay"] == 0.0


def test_frozen_embeddings_are_not_trained() -> None:
    model = Model()
    model.embed.weight.requires_grad_(False)
    assert "embed.weight" not in trainable_parameters(model)
    make_optimizer(model, CONFIG)


def test_state_survives_tensors_bit_for_bit() -> None:
    torch.manual_seed(0)
    first, second = Model(), Model()
    optimizer = make_optimizer(first, CONFIG)
    take_step(first, optimizer, 1)
    second.load_state_dict(first.state_dict())
    other = make_optimizer(second, CONFIG)
    load_optimizer_tensors(second, other, optimizer_tensors(first, optimizer).items())
    for seed in (2, 3):
        take_step(first, optimizer, seed)
        take_step(second, other, seed)
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
