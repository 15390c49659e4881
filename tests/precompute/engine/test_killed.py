"""Stage 1 through an engine, killed while it publishes: a rerun completes it and redoes the open shards alone."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from eaglepipe.cache.published import unpublished_shards
from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.files import publish
from eaglepipe.files.leftovers import leftovers
from eaglepipe.precompute.engine import run as engine_run
from eaglepipe.precompute.engine.job import CaptureJob
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.plan import resume_plan
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from tests.cache.derived import few
from tests.precompute.engine.hook_engine import HookEngine
from tests.processes import start
from tests.stage_one import plan_in_an_earlier_order, quiet
from tests.tiny_project import TinyProject

GROUP_TOKENS = 160  # two samples a shard
MOMENTS = (
    ("00001.arrow", "after"),  # the shard is there, its sidecar is not
)


def precompute(recipe_file: Path, overrides: Mapping[str, object], name: str, moment: str) -> None:
    """Run stage 1 with the engine of the tests in place of vLLM, and kill this process when a file is published."""
    move = publish._move

    def killing(source: Path, target: Path) -> None:
        hit = target.name == name
        if not hit or moment == "after":
            move(source, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def engine(run: engine_run.EngineRun) -> Iterator[HookEngine]:
        yield HookEngine(CaptureJob.of(run._inputs, run._plan.folder, run._plan.document.identity), at_once=2)

    publish._move = killing
    engine_run.require_vllm = lambda *_: "0"
    engine_run.EngineRun._engine = engine
    run_precompute(load_recipe(recipe_file, [f"{key}={value}" for key, value in overrides.items()]), report=quiet)


def test_killed_in_every_phase_of_publishing_it_completes(project: TinyProject, tmp_path: Path) -> None:
    overrides = {**few(project), "cache.root": str(tmp_path), "target.engine": "vllm"}
    recipe = project.recipe(**overrides)
    folder = plan_in_an_earlier_order(recipe, GROUP_TOKENS)
    document = resume_plan(read_stage1_inputs(recipe), folder).document
    assert document.shards > 2
    for name, moment in MOMENTS:
        before = _published(folder)
        done = start(precompute, project.recipe_file, overrides, name, moment).wait()
        assert done.returncode == -signal.SIGKILL, done.stderr
        after = _published(folder)
        assert {path: after.get(path) for path in before} == before, "a published shard was written again"
        assert len([path for path in leftovers(folder) if ".arrow" in path.name]) <= 2
        assert int(name.partition(".")[0]) in unpublished_shards(folder, document)
    done = start(precompute, project.recipe_file, overrides, "nothing", "before").wait()
    assert done.returncode == 0, done.stderr
    assert verify_cache(folder, full=True).ok
    assert leftovers(folder) == [] and not (folder / "work").exists()
    plain = Path(
        run_precompute(project.recipe(**few(project), **{"cache.root": tmp_path / "plain"}), report=quiet).folder
    )
    ids = [{cache.read(n).sample_id for n in range(cache.num_samples)} for cache in map(Cache.open, (plain, folder))]
    assert ids[0] == ids[1]


def _published(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.json")}
