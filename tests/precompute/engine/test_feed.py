"""States that an engine gives back in any order become the samples, shards and refusals of stage 1."""

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from eaglepipe.cache.fixed_files import publish_files
from eaglepipe.cache.manifest import load_document
from eaglepipe.cache.published import read_published
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import DataError, ResourceError
from eaglepipe.precompute.engine.feed import Claim, Feed
from eaglepipe.precompute.engine.job import CaptureJob
from eaglepipe.precompute.engine.shards import read_spare
from eaglepipe.precompute.inputs import Stage1Inputs, read_stage1_inputs
from eaglepipe.precompute.plan import PrecomputePlan, resume_plan
from eaglepipe.precompute.shard_run import fixed_files
from eaglepipe.progress import ProgressLine
from eaglepipe.target.head_only import load_head_only
from eaglepipe.vllm_engine.session import Engine
from tests.cache.derived import few
from tests.precompute.engine.hook_engine import HookEngine
from tests.stage_one import cache_in_an_earlier_order, plan_in_an_earlier_order
from tests.tiny_project import TinyProject

KINDS = {
    "dense": {"cache.supervision": "dense"},
    "sparse": {"cache.supervision": "sparse", "cache.max_entries": 8},
    "hidden": {"cache.aux_codec": "int4", "cache.last_hidden": "all"},
    "last": {"cache.aux_layer_ids": "[2, 4, 8]"},  # the last boundary among them
}
WINDOW = 24  # shorter than most samples
GROUP_TOKENS = 160  # two samples


class Planned:
    """A planned cache of the tiny project that an engine is to fill."""

    def __init__(self, project: TinyProject, root: Path, **overrides: Any) -> None:
        recipe = project.recipe(**{"cache.root": str(root), **few(project), **overrides})
        self.inputs: Stage1Inputs = read_stage1_inputs(recipe)
        self.plan: PrecomputePlan = resume_plan(self.inputs, plan_in_an_earlier_order(recipe, GROUP_TOKENS))
        publish_files(self.plan.folder, fixed_files(self.inputs, self.plan.layout.vocab, load_head_only(recipe.target)))
        self.job = CaptureJob.of(self.inputs, self.plan.folder, self.plan.document.identity)
        self.shards = list(range(self.plan.document.shards))

    def feed(self, engine: HookEngine, claims: Iterator[Claim] | None = None) -> int:
        spare = self.plan.folder / "spare"
        spare.mkdir(exist_ok=True)
        with (
            ProgressLine("test", total=None, unit="tok", enabled=False) as progress,
            Feed(self.inputs, self.plan, cast(Engine, engine), progress, spare) as feed,
        ):
            return feed.run(claims or (Claim(shard=shard) for shard in self.shards))

    def sidecar(self, shard: int) -> Sidecar:
        sidecar = read_published(self.plan.folder, self.plan.document, shard)
        assert isinstance(sidecar, Sidecar), sidecar
        return sidecar

    def samples(self) -> dict[str, CachedSample]:
        items = [item for shard in self.shards for item in read_spare(self.plan.folder, shard)]
        return {item.sample_id: item for item in items if isinstance(item, CachedSample)}


def assert_same(mine: CachedSample, other: CachedSample) -> None:
    """Compare two samples whose states come from other batches: codes may differ by one step, numbers by rounding."""
    for field in ("sample_id", "source", "input_ids", "loss_mask", "supervised", "position_mask", "target_top1"):
        np.testing.assert_array_equal(getattr(mine, field), getattr(other, field), err_msg=field)
    np.testing.assert_allclose(mine.draft_mass, other.draft_mass, atol=1e-5)
    for name, values in (("aux", mine.aux_payload), *mine.supervision.items()):
        theirs = other.aux_payload if name == "aux" else other.supervision[name]
        assert values.shape == theirs.shape and values.dtype == theirs.dtype, name
        assert np.mean(values != theirs) < 0.02, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_are_those_of_stage_one_in_the_same_shards_and_order(
    project: TinyProject, tmp_path: Path, kind: str
) -> None:
    overrides = {**few(project), **KINDS[kind]}
    expected = cache_in_an_earlier_order(project, tmp_path / "plain", group_tokens=GROUP_TOKENS, **overrides)
    planned = Planned(project, tmp_path / "engine", **KINDS[kind])
    engine = HookEngine(planned.job, window_rows=WINDOW)
    assert planned.feed(engine) == len(planned.shards)
    assert len(planned.shards) > 2
    for shard in planned.shards:
        described = load_document(expected / "shards" / f"{shard:05d}.json", Sidecar)
        assert planned.sidecar(shard).index == described.index
        for mine, other in zip(read_spare(planned.plan.folder, shard), read_spare(expected, shard), strict=True):
            assert isinstance(mine, CachedSample) and isinstance(other, CachedSample)
            assert_same(mine, other)
    assert all(rows.released for rows in engine.held.values())
    assert max(rows.most_rows for rows in engine.held.values()) <= WINDOW


def test_windows_change_no_byte_of_what_is_stored_by_row(project: TinyProject, tmp_path: Path) -> None:
    whole, cut = (Planned(project, tmp_path / name) for name in ("whole", "cut"))
    whole.feed(HookEngine(whole.job))
    cut.feed(HookEngine(cut.job, window_rows=7))
    for name, sample in whole.samples().items():
        assert np.array_equal(sample.aux_payload, cut.samples()[name].aux_payload)
        assert np.array_equal(sample.target_top1, cut.samples()[name].target_top1)


def test_at_most_two_shards_are_open_and_each_is_let_go_once_published(project: TinyProject, tmp_path: Path) -> None:
    planned = Planned(project, tmp_path)
    held: set[int] = set()
    most = 0

    def claims() -> Iterator[Claim]:
        nonlocal most
        for shard in planned.shards:
            lock = ExitStack()
            lock.callback(held.discard, shard)
            held.add(shard)
            most = max(most, len(held))
            assert all(isinstance(planned.sidecar(done), Sidecar) for done in range(shard) if done not in held)
            yield Claim(shard=shard, lock=lock)

    assert planned.feed(HookEngine(planned.job), claims()) == len(planned.shards)
    assert most == 2 and not held


def test_a_sample_that_is_not_finite_is_refused_by_its_id(project: TinyProject, tmp_path: Path) -> None:
    planned = Planned(project, tmp_path, **{"data.max_drop_fraction": 0.5})
    engine = HookEngine(planned.job)
    victim = planned.plan.layout.tokens.read(int(planned.plan.layout.shards[0][0][0])).sample_id
    engine.poisoned.add(victim)
    planned.feed(engine)
    (refused,) = [refused for shard in planned.shards for refused in planned.sidecar(shard).refused]
    assert refused.sample_id == victim
    assert "states or logits (float32) are not finite from token 3 on" in refused.reason
    assert len(planned.samples()) == planned.plan.document.samples - 1


def test_too_many_lost_samples_end_the_run(project: TinyProject, tmp_path: Path) -> None:
    planned = Planned(project, tmp_path, **{"data.max_drop_fraction": 0.1})
    engine = HookEngine(planned.job)
    engine.poisoned |= {planned.plan.layout.tokens.read(number).sample_id for number in range(4)}
    with pytest.raises(DataError, match="are lost"):
        planned.feed(engine)


def test_known_samples_are_written_as_they_are_and_not_computed(project: TinyProject, tmp_path: Path) -> None:
    planned = Planned(project, tmp_path)
    planned.feed(HookEngine(planned.job))
    shard = planned.shards[1]
    before = (planned.plan.folder / "shards" / f"{shard:05d}.arrow").read_bytes()
    items = read_spare(planned.plan.folder, shard)
    known = {item.sample_id: item for item in items[1:] if isinstance(item, CachedSample)}
    engine = HookEngine(planned.job)
    assert planned.feed(engine, iter([Claim(shard=shard, known=known)])) == 1
    assert len(engine.held) == 1
    assert (planned.plan.folder / "shards" / f"{shard:05d}.arrow").read_bytes() == before
    whole = {item.sample_id: item for item in items if isinstance(item, CachedSample)}
    assert planned.feed(HookEngine(planned.job), iter([Claim(shard=shard, known=whole)])) == 1
    assert (planned.plan.folder / "shards" / f"{shard:05d}.arrow").read_bytes() == before


def test_a_full_disk_ends_the_run_with_its_own_error_and_frees_the_engine(project: TinyProject, tmp_path: Path) -> None:
    planned = Planned(project, tmp_path)
    engine = HookEngine(planned.job)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="file size limit"):
            planned.feed(engine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    end = time.monotonic() + 30  # the error is told before the last rows are released
    while not all(rows.released for rows in engine.held.values()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not list((planned.plan.folder / "shards").iterdir())
