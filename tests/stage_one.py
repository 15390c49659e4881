"""Stage 1 over the tiny project, without a word, and the bytes that it leaves."""

from pathlib import Path

from eaglepipe.cache.reader import Cache
from eaglepipe.precompute.stage import run_precompute
from tests.tiny_project import TinyProject


def quiet(_: str) -> None: ...


def cache_of(project: TinyProject, root: Path, **overrides: object) -> Cache:
    recipe = project.recipe(**{"cache.root": root, **overrides})
    return Cache.open(Path(run_precompute(recipe, report=quiet).folder))


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}
