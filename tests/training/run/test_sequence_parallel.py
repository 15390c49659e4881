"""Two ranks that share every sample follow the run of one; what cannot be shared is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from eaglepipe.errors import ConfigError
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.train import train_from
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.run_plan import plan_run
from tests.ranks import run_ranks
from tests.training.tiny_source import tiny_recipe, tiny_source

COUNTED = ("tokens", "supervised_tokens", "simulated_acceptance_length", "accuracy_by_depth")
SHARED: dict[str, Any] = {"sequence_parallel": 2, "micro_batch_tokens": 24, "chunk_tokens": 5}


def run(folder: Path, settings: dict[str, Any]) -> None:
    train_from(tiny_recipe(folder, loss="lambda", max_steps=6, **settings), tiny_source())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(folder, {})
    return folder


@pytest.mark.parametrize(("count", "shard"), [(4, False), (4, True)], ids=["whole", "sharded"])
def test_ranks_that_share_samples_follow_the_run_of_one(tmp_path: Path, alone: Path, count: int, shard: bool) -> None:
    run_ranks(count, run, tmp_path, {**SHARED, "shard": shard})
    rows, expected = (list(read_metrics(folder / "metrics.jsonl")) for folder in (tmp_path, alone))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-6)
    for row, other in zip(rows, expected, strict=True):
        assert {name: row.get(name) for name in COUNTED} == {name: other.get(name) for name in COUNTED}
    single = load_file(alone / "draft" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "draft" / "model.safetensors").items():
        torch.testing.assert_close(tensor, single[name], rtol=1e-5, atol=1e-5)


def test_a_number_of_ranks_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    config = tiny_recipe(tmp_path, sequence_parallel=2).train
    with pytest.raises(ConfigError, match="does not divide the 3 ranks of this run; start a multiple of 2"):
        plan_run(tiny_source(), config, World(device=torch.device("cpu"), size=3))
    with pytest.raises(ConfigError, match="does not divide the 1 rank"):
        train_from(tiny_recipe(tmp_path, sequence_parallel=2), tiny_source())


@pytest.mark.parametrize("objective", ["peagle", "dflash", "eagle1"])
def test_a_family_that_computes_samples_whole_is_refused(objective: str) -> None:
    train = {"objective": objective, "sequence_parallel": 2, "caches": ["somewhere"]}
    data = {"sources": [{"path": "nowhere.jsonl"}]}
    with pytest.raises(ValidationError, match=f"objective {objective} computes each sample on one rank"):
        parse_recipe({"name": "tiny", "target": {"path": "nowhere"}, "data": data, "train": train})


def test_a_sample_fits_if_its_ranks_hold_it_together(tmp_path: Path) -> None:
    source, device = tiny_source(), torch.device("cpu")
    settings = {"micro_batch_tokens": 8, "batch_tokens": 64}
    with pytest.raises(ConfigError, match=r"longest sample has \d+ tokens; raise it .* or let more ranks share it"):
        plan_run(source, tiny_recipe(tmp_path, **settings).train, World(device=device, size=2))
    limits = plan_run(
        source, tiny_recipe(tmp_path, **settings, sequence_parallel=2).train, World(device=device, size=4, rank=3)
    ).limits
    assert (limits.pack_length, limits.micro_batch_tokens, limits.world_size, limits.rank) == (16, 16, 2, 1)
    assert limits.share is not None and (limits.share.rank, limits.share.size) == (1, 2)
