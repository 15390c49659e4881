"""Sharded ranks: a share of everything on each, one trajectory, and checkpoints that any world goes on from."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from eaglepipe.eagle.layers.blocks import Eagle3LlamaRMSNorm
from eaglepipe.training.data.order import heldout_hash
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.ranks.distributed import join_world
from eaglepipe.training.run.ranks.sharding import own_rows
from tests.ranks import run_ranks
from tests.training.run.worlds import deviation, family_recipe, family_source, run_family, run_worlds, step_samples

FAMILY = "eagle3 lambda"  # with embeddings that are trained, and state besides the optimizer's
STEPS = 6
HELDOUT = 0.2  # the share of samples, as the recipe says


def _hold_shards(folder: Path) -> None:
    recipe, source = family_recipe(FAMILY, folder, shard=True), family_source(FAMILY)
    with join_world("cpu") as world:
        draft = build_draft(source, recipe.train, recipe.draft)
        matrices = [p for p in draft.parameters() if p.ndim == 2]
        whole, small = sum(p.numel() for p in matrices), sum(p.numel() for p in draft.parameters() if p.ndim != 2)
        learner = Learner(source, draft, recipe.train, world)
        assert learner.is_sharded
        held = sum(own_rows(parameter).numel() for parameter in learner.draft.parameters())
        assert abs(held - small - whole / world.size) < whole / 20
        with learner.gathered():
            assert sum(parameter.numel() for parameter in learner.draft.parameters()) == small + whole
            assert not any(isinstance(parameter, DTensor) for parameter in learner.draft.parameters())
        outcome = learner.step([], torch.ones(3, dtype=torch.int64), 0.1, rounds=1)  # only as a part of others' sums
        assert outcome.grad_norm == 0.0
        norms = [module for module in draft.modules() if isinstance(module, Eagle3LlamaRMSNorm)]
        assert all(not isinstance(norm.weight, DTensor) for norm in norms)
        state = learner.optimizer_tensors()
        assert all(isinstance(state[f"exp_avg.{name}"], DTensor) == (p.ndim == 2) for name, p in _trained(learner))


def _trained(learner: Learner) -> list[tuple[str, torch.Tensor]]:
    return list(learner.draft_tensors().items())


def test_each_rank_holds_its_share_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    run_ranks(2, _hold_shards, tmp_path)


def test_sharded_and_whole_ranks_continue_each_other_along_one_trajectory(tmp_path: Path) -> None:
    run_family(FAMILY, tmp_path / "alone", {"max_steps": STEPS})
    run_worlds(FAMILY, tmp_path / "run", ((2, True), (3, False), (1, True)), STEPS)
    found = deviation(tmp_path / "run", tmp_path / "alone")
    assert found.steps == STEPS
    assert found.loss == pytest.approx(0.0, abs=1e-6) and found.weight == pytest.approx(0.0, abs=1e-5)

    taken = step_samples(tmp_path / "run")
    assert taken == step_samples(tmp_path / "alone")
    trained = [one.sample_id for one in family_source(FAMILY).samples if heldout_hash(one.sample_id) >= HELDOUT]
    assert sorted(chain.from_iterable(taken)) == sorted(trained)  # these steps are the first epoch
