"""The samples of each shard and their order depend on the identity alone: on no token budget, worker or earlier run."""

from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eaglepipe.cache.manifest import load_document
from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.chat.drops import DropLog
from eaglepipe.precompute.claims import Worker
from eaglepipe.precompute.content_identity import cache_identity
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.layout import GROUP_TOKENS, lay_out, plan_shards, split_group
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.precompute.staging import StagedTokens
from eaglepipe.recipe.config import PrecomputeConfig
from tests.cache.damage import rewrite
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

BUDGETS = (64, 300, 1024, GROUP_TOKENS, 10**6)
LENGTHS = st.lists(st.integers(1, 9000), min_size=1, max_size=60).map(np.array)


def ids_by_shard(folder: Path) -> list[tuple[str, ...]]:
    sidecars = sorted((folder / "shards").glob("*.json"))
    return [load_document(path, Sidecar).index.sample_ids for path in sidecars]


def test_budgets_and_workers_leave_every_shard_its_samples_in_their_order(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    expected, plan = ids_by_shard(sealed_cache), load_plan(sealed_cache)
    assert len(expected) > 2
    budgets = cycle(BUDGETS)  # each worker has its own
    for count in (1, 2, 3):
        for rank in reversed(range(count)):
            settings = {"precompute.batch_tokens": next(budgets), "cache.root": tmp_path / str(count)}
            result = run_precompute(project.recipe(**settings), worker=Worker(rank=rank, count=count), report=quiet)
        assert result.complete and ids_by_shard(Path(result.folder)) == expected, count
        assert load_plan(Path(result.folder)) == plan


@pytest.mark.parametrize("old_tokens", [0, 500])
def test_a_plan_of_an_earlier_release_goes_on_with_its_own_groups(
    project: TinyProject, tmp_path: Path, old_tokens: int
) -> None:
    """Releases that grouped samples by the run's own budget wrote it into the plan."""
    recipe = project.recipe(**{"cache.root": tmp_path, "precompute.batch_tokens": 600})
    folder = Path(run_precompute(recipe, dry_run=True, report=quiet).folder)
    inputs, tokens = read_stage1_inputs(recipe), StagedTokens(folder / "work" / "tokens.arrow")
    layout = lay_out(inputs, tokens, drops=DropLog())
    lengths, room = layout.statistics.num_tokens, recipe.cache.shard_bytes / layout.cost.total
    shards = shards_of_earlier_releases(lengths, old_tokens, shard_tokens=room)
    assert len(shards) != len(layout.shards)
    rewrite(folder / "plan.json", lambda plan: plan.update(batch_tokens=old_tokens, shards=len(shards)))
    expected = [tuple(tokens.read(number).sample_id for group in shard for number in group) for shard in shards]
    assert ids_by_shard(Path(run_precompute(recipe, report=quiet).folder)) == expected


def test_settings_outside_the_identity_leave_the_layout(project: TinyProject, tmp_path: Path) -> None:
    first = Path(run_precompute(project.recipe(**{"cache.root": tmp_path}), dry_run=True, report=quiet).folder)
    tokens = StagedTokens(first / "work" / "tokens.arrow")

    def layout(**settings: object) -> tuple[str, list[list[list[int]]]]:
        inputs = read_stage1_inputs(project.recipe(**settings))
        shards = lay_out(inputs, tokens, drops=DropLog()).shards
        identity = cache_identity(inputs, weights="", corpus="").digest
        return identity, [[group.tolist() for group in shard] for shard in shards]

    expected = layout()
    for section, values in {
        "precompute": {"batch_tokens": 70, "head_chunk_rows": 3, "queue_batches": 1, "device": "cpu"},
        "cache": {"max_entries": 17, "tolerance": 0.5, "probs_codec": "fp32"},
        "data": {"max_drop_fraction": 0.5},
        "train": {"batch_tokens": 2048, "seed": 3},
    }.items():
        assert layout(**{f"{section}.{name}": value for name, value in values.items()}) == expected


def test_groups_are_those_of_the_default_budget() -> None:
    assert PrecomputeConfig().batch_tokens == GROUP_TOKENS


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.floats(1, 50_000), st.none() | st.integers(1, 9000))
def test_the_default_layout_is_that_of_earlier_releases(
    lengths: NDArray[np.int64], shard_tokens: float, split_at: int | None
) -> None:
    expected = shards_of_earlier_releases(lengths, 16_384, shard_tokens=shard_tokens, split_at=split_at)
    found = plan_shards(lengths, GROUP_TOKENS, shard_tokens=shard_tokens, split_at=split_at)
    assert [[group.tolist() for group in shard] for shard in found] == expected


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 20_000), st.none() | st.integers(1, 9000))
def test_forwards_hold_no_more_than_their_budget_and_keep_order_and_rope(
    lengths: NDArray[np.int64], batch_tokens: int, split_at: int | None
) -> None:
    shards = plan_shards(lengths, GROUP_TOKENS, shard_tokens=9e4, split_at=split_at)
    for group in chain.from_iterable(shards):
        parts = list(split_group(group, lengths, batch_tokens))
        assert np.concatenate(parts).tolist() == group.tolist()
        for part in parts:
            assert len(part) == 1 or len(part) * lengths[part].max() <= batch_tokens
            assert split_at is None or len(set(lengths[part] > split_at)) == 1


def shards_of_earlier_releases(
    lengths: NDArray[np.integer], batch_tokens: int, *, shard_tokens: float, split_at: int | None = None
) -> list[list[list[int]]]:
    """Return the layout as it was when groups were the batches of one forward, from its rules."""
    order = sorted(range(len(lengths)), key=lambda i: -int(lengths[i]))
    sides = [[i for i in order if split_at is not None and lengths[i] > split_at]]
    sides.append([i for i in order if i not in set(sides[0])])
    batches: list[list[int]] = []
    for side in sides:
        rest = side
        while rest:
            longest = int(lengths[rest[0]])
            similar = sum(int(lengths[i]) >= longest * 0.95 for i in rest)
            rows = max(1, min(batch_tokens // longest, max(similar, int(batch_tokens * 0.25) // longest)))
            batches.append(rest[:rows])
            rest = rest[rows:]
    shards: list[list[list[int]]] = []
    room = 0.0
    for number in [0, *(np.random.default_rng(0).permutation(len(batches) - 1) + 1).tolist()]:
        tokens = sum(int(lengths[i]) for i in batches[number])
        if not shards or tokens > room:
            shards.append([])
            room = shard_tokens
        shards[-1].append(batches[number])
        room -= tokens
    return shards
