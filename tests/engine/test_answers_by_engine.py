"""vLLM answers prompts and gives the states of what it has sampled in the same pass."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.recipe.tree import Recipe
from tests.own_answers import SAMPLED, answering_recipe, conversation, save_ending_target
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

ROWS = [conversation(number) for number in range(24)]


@pytest.fixture(scope="module")
def target(served_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ending_target(served_project, tmp_path_factory.mktemp("ending"))


def by_vllm(target: Path, folder: Path, **generate: Any) -> Recipe:
    cache = {"aux_codec": "fp32", "hidden_codec": "fp32", "shard_bytes": "300KiB"}
    recipe = answering_recipe(target, folder, ROWS, generate={**SAMPLED, **generate}, cache=cache)
    engine = TargetConfig(path=str(target), engine="vllm", dtype="float32")
    return recipe.model_copy(update={"target": engine})


def samples_of(cache: Cache) -> dict[str, CachedSample]:
    return {sample.sample_id: sample for sample in map(cache.read, range(cache.manifest.samples))}


def assert_states_are_those_of_a_prefill(cache: Cache, recipe: Recipe, root: Path) -> None:
    """Compare with the states that transformers gives of the same token ids."""
    data = {**recipe.data.model_dump(), "generate": None}
    data["sources"] = [{"path": str(cache.folder / "answers.jsonl"), "name": "again"}]
    update = {
        "target": TargetConfig(path=recipe.target.path, dtype="float32"),
        "data": type(recipe.data).model_validate(data),
        "cache": recipe.cache.model_copy(update={"root": str(root)}),
    }
    again = samples_of(Cache.open(Path(run_precompute(recipe.model_copy(update=update), report=quiet).folder)))
    mine = samples_of(cache)
    assert {f"again:{sample_id}" for sample_id in mine} == set(again)
    for sample_id, sample in mine.items():
        other = again[f"again:{sample_id}"]
        np.testing.assert_array_equal(sample.input_ids, other.input_ids)
        np.testing.assert_array_equal(sample.supervised, other.supervised)
        ours, theirs = (np.frombuffer(one.aux_payload.tobytes(), np.float32) for one in (sample, other))
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_states_of_sampled_tokens_are_those_of_a_later_prefill(target: Path, tmp_path: Path) -> None:
    recipe = by_vllm(target, tmp_path, n=2)
    cache = Cache.open(Path(run_precompute(recipe, report=quiet).folder))
    assert verify_cache(cache.folder, full=True).ok
    assert len(samples_of(cache)) > len(ROWS)
    assert_states_are_those_of_a_prefill(cache, recipe, tmp_path / "again")


def test_killed_and_run_again_it_completes(target: Path, tmp_path: Path) -> None:
    recipe = by_vllm(target, tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    process = subprocess.Popen([sys.executable, "-m", "eaglepipe", "precompute", str(file)])
    until = time.monotonic() + 240
    while not any((tmp_path / "caches").glob("*/work/answers/*.jsonl")) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (tmp_path / "caches").glob("own-*")
    logged = next((folder / "work" / "answers").glob("*.jsonl")).read_text().splitlines()
    cache = Cache.open(Path(run_precompute(recipe, report=quiet).folder))
    assert verify_cache(cache.folder, full=True).ok
    answers = (folder / "answers.jsonl").read_text()
    kept = [yaml.safe_load(line) for line in logged[:-1]]
    for row in (row for outcome in kept for row in outcome["rows"]):
        assert f'"input_ids":{row["input_ids"]}'.replace(" ", "") in answers
    assert_states_are_those_of_a_prefill(cache, recipe, tmp_path / "again")
