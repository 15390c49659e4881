"""Stage 1 over the tiny project, without a word, and the bytes that it leaves."""

import json
from pathlib import Path

from eaglepipe.cache.reader import Cache
from eaglepipe.precompute.stage import run_precompute
from tests.tiny_project import TinyProject


def quiet(_: str) -> None: ...


def with_repetitions(project: TinyProject) -> dict[str, str]:
    """Overrides for a corpus some of whose rows come twice, so that its cache has a list of drops."""
    first = {"path": str(project.sources[0]), "max_samples": 4}
    return {"data.sources": json.dumps([*({"path": str(path)} for path in project.sources), first])}


def cache_of(project: TinyProject, root: Path, **overrides: object) -> Cache:
    recipe = project.recipe(**{"cache.root": root, **overrides})
    return Cache.open(Path(run_precompute(recipe, report=quiet).folder))


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
