"""Answers that an engine samples become the cache that stage 1 would make of them, in one pass."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.files.leftovers import leftovers
from eaglepipe.generation.answering import Sampling
from eaglepipe.precompute.answers.answering import Prompts
from eaglepipe.precompute.answers.engine_answerer import EngineAnswerer
from eaglepipe.precompute.answers.engine_feed import AnswerFeed
from eaglepipe.precompute.answers.log import ShardAnswers
from eaglepipe.precompute.engine.feed import Claim
from eaglepipe.precompute.engine.job import CaptureJob
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.plan import PrecomputePlan, resume_plan
from eaglepipe.precompute.shard_run import publish_fixed_files
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.head_only import load_head_only
from eaglepipe.target.steps.stops import stop_ids_of_folder
from eaglepipe.vllm_engine.session import Engine
from tests.own_answers import SAMPLED, answering_recipe, conversation, save_ending_target
from tests.precompute.engine.writing_engine import WritingEngine
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

ROWS = [conversation(number) for number in range(8)]


@pytest.fixture(scope="module")
def target(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ending_target(project, tmp_path_factory.mktemp("ending"))


class Planned:
    """A planned cache whose prompts an engine is to answer."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.inputs = read_stage1_inputs(recipe)
        folder = Path(run_precompute(recipe, dry_run=True, report=quiet).folder)
        self.plan: PrecomputePlan = resume_plan(self.inputs, folder)
        publish_fixed_files(self.inputs, self.plan, load_head_only(recipe.target))
        self.job = CaptureJob.of(self.inputs, folder, self.plan.document.identity)

    def fill(self, *, shards: list[int] | None = None) -> WritingEngine:
        engine, settings = WritingEngine(self.job), self.recipe.data.generate
        assert settings is not None
        sampling = Sampling(**settings.model_dump(include={"max_new_tokens", "temperature", "top_p"}))
        ends = stop_ids_of_folder(self.inputs.folder, self.inputs.model_config, self.inputs.chat)
        answerer = EngineAnswerer(cast(Engine, engine), sampling, ends, self.recipe.data)
        prompts = Prompts(inputs=self.inputs, plan=self.plan, answerer=answerer)
        chosen = range(self.plan.document.shards) if shards is None else shards
        with (
            ProgressLine("test", total=None, unit="tok", enabled=False) as progress,
            AnswerFeed(prompts, answerer, cast(Engine, engine), progress) as feed,
        ):
            assert feed.run(Claim(shard=shard) for shard in chosen) == len(chosen)
        return engine

    def sealed(self) -> Cache:
        result = run_precompute(self.recipe, seal_only=True, report=quiet)
        assert result.complete
        return Cache.open(Path(result.folder))


def samples_of(cache: Cache) -> dict[str, CachedSample]:
    return {sample.sample_id: sample for sample in map(cache.read, range(cache.manifest.samples))}


def assert_stage_one_gives_the_same(cache: Cache, recipe: Recipe, root: Path) -> None:
    """Make a cache from the answers' tokens, and compare every sample of both."""
    data = {**recipe.data.model_dump(), "generate": None}
    data["sources"] = [{"path": str(cache.folder / "answers.jsonl"), "name": "again"}]
    update = {
        "data": type(recipe.data).model_validate(data),
        "cache": recipe.cache.model_copy(update={"root": str(root)}),
    }
    again = samples_of(Cache.open(Path(run_precompute(recipe.model_copy(update=update), report=quiet).folder)))
    mine = samples_of(cache)
    assert {f"again:{sample_id}" for sample_id in mine} == set(again)
    for sample_id, sample in mine.items():
        other = again[f"again:{sample_id}"]
        for field in ("input_ids", "loss_mask", "supervised", "target_top1", "position_mask"):
            np.testing.assert_array_equal(getattr(sample, field), getattr(other, field), err_msg=field)
        aux = (np.frombuffer(one.aux_payload.tobytes(), np.float32) for one in (sample, other))
        np.testing.assert_allclose(*aux, atol=2e-5)


@pytest.mark.parametrize(
    ("supervise", "settings"), [("all", {"max_new_tokens": 6, "keep_unfinished": True}), ("all", {}), ("last", {})]
)
def test_the_cache_is_that_of_its_answers(
    target: Path, tmp_path: Path, supervise: str, settings: dict[str, Any]
) -> None:
    recipe = answering_recipe(
        target,
        tmp_path,
        ROWS,
        generate={**SAMPLED, "n": 2, **settings},
        data={"supervise": supervise},
        cache={"aux_codec": "fp32", "hidden_codec": "fp32"},
    )
    planned = Planned(recipe)
    engine = planned.fill()
    cache = planned.sealed()
    assert verify_cache(cache.folder, full=True).ok and not leftovers(cache.folder)
    assert all(rows.released for rows in engine.held.values())
    assert engine.prefills < cache.manifest.samples / 2
    assert "unfinished" not in cache.manifest.drops or not settings
    assert len(samples_of(cache)) + sum(cache.manifest.drops.values()) >= 2 * len(ROWS)
    assert_stage_one_gives_the_same(cache, recipe, tmp_path / "again")


def test_answers_of_a_run_that_was_killed_are_kept_and_read_again(target: Path, tmp_path: Path) -> None:
    recipe = answering_recipe(target, tmp_path, ROWS, generate=SAMPLED)
    planned = Planned(recipe)
    planned.fill(shards=[0])
    (planned.plan.folder / "shards" / "00000.json").unlink()  # killed between a shard and its sidecar
    logged = ShardAnswers(planned.plan.folder, 0).read()
    engine = planned.fill()
    cache, samples = planned.sealed(), 0
    for outcome in logged.values():
        for row in outcome.rows:
            assert samples_of(cache)[row["id"]].input_ids.tolist() == row["input_ids"]
            samples += 1
    assert engine.prefills >= samples > 0


def test_unfinished_answers_are_refused_by_id(target: Path, tmp_path: Path) -> None:
    recipe = answering_recipe(target, tmp_path, ROWS, generate={**SAMPLED, "max_new_tokens": 6})
    planned = Planned(recipe)
    planned.fill()
    cache: Any = planned.sealed()
    assert cache.manifest.drops["unfinished"] > 0
    assert all(len(row.input_ids) for row in samples_of(cache).values())
