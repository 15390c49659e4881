"""Stage 1 over the tiny project, without a word, and the bytes that it leaves."""

import json
from pathlib import Path

from eaglepipe.cache.reader import Cache
from eaglepipe.chat.drops import DropLog
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.layout import lay_out
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.precompute.staging import StagedTokens
from eaglepipe.recipe.tree import Recipe
from tests.cache.damage import rewrite
from tests.tiny_project import TinyProject


def quiet(_: str) -> None: ...


def with_repetitions(project: TinyProject) -> dict[str, str]:
    """Overrides for a corpus some of whose rows come twice, so that its cache has a list of drops."""
    first = {"path": str(project.sources[0]), "max_samples": 4}
    return {"data.sources": json.dumps([*({"path": str(path)} for path in project.sources), first])}


def cache_of(project: TinyProject, root: Path, **overrides: object) -> Cache:
    recipe = project.recipe(**{"cache.root": root, **overrides})
    return Cache.open(Path(run_precompute(recipe, report=quiet).folder))


def cache_in_an_earlier_order(project: TinyProject, root: Path, *, group_tokens: int, **overrides: object) -> Path:
    """Make a cache by a plan of an earlier release, which grouped samples by the run's own token budget."""
    recipe = project.recipe(**{"cache.root": root, **overrides})
    plan_in_an_earlier_order(recipe, group_tokens)
    return Path(run_precompute(recipe, report=quiet).folder)


def plan_in_an_earlier_order(recipe: Recipe, group_tokens: int) -> Path:
    """Leave a plan whose groups have other sizes than this release gives them; returns the cache's folder."""
    folder = Path(run_precompute(recipe, dry_run=True, report=quiet).folder)
    tokens = StagedTokens(folder / "work" / "tokens.arrow")
    shards = lay_out(read_stage1_inputs(recipe), tokens, drops=DropLog(), group_tokens=group_tokens).shards
    rewrite(folder / "plan.json", lambda plan: plan.update(batch_tokens=group_tokens, shards=len(shards)))
    return folder


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
