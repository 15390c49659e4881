"""Nothing that changed after it was published is sealed: it is refused by `--seal`, and made again by a rerun."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eaglepipe.cache.manifest import MANIFEST_NAME
from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.seal import seal_cache
from eaglepipe.errors import CacheError, CorruptError, EaglepipeError, StoppedError
from eaglepipe.precompute import stage
from eaglepipe.precompute.claims import Worker
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.model import TargetParts
from tests.cache.damage import flip
from tests.stage_one import contents, quiet, with_repetitions
from tests.tiny_project import TinyProject

NUM_FLIPS = 100


@dataclass(frozen=True, kw_only=True)
class Unsealed:
    """A cache whose files are all published, save its manifest, and the same cache sealed."""

    project: TinyProject
    folder: Path
    sealed: dict[str, bytes]
    spec: ShardSpec

    def copy(self, root: Path) -> Path:
        return Path(shutil.copytree(self.folder, root / self.folder.name))

    def recipe(self, root: Path) -> Recipe:
        return recipe_of(self.project, root)


def recipe_of(project: TinyProject, root: Path) -> Recipe:
    return project.recipe(**with_repetitions(project), **{"cache.root": root})


@pytest.fixture(scope="module")
def unsealed(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Unsealed:
    root = tmp_path_factory.mktemp("unsealed")

    def stop(*_: object, **__: object) -> None:
        raise StoppedError("stopped before the manifest")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(stage, "seal_cache", stop)
        run_precompute(recipe_of(project, root), report=quiet)
    folder = next(path for path in root.iterdir() if path.is_dir())
    sealed = Cache.open(
        Path(run_precompute(recipe_of(project, tmp_path_factory.mktemp("sealed")), report=quiet).folder)
    )
    return Unsealed(project=project, folder=folder, sealed=contents(sealed.folder), spec=sealed.spec)


def test_of_100_flips_before_sealing_none_is_sealed(unsealed: Unsealed, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = unsealed.copy(tmp_path)
    published = contents(folder)
    names = sorted(name for name, data in published.items() if data and name != "work/tokens.arrow")
    assert {"drops.jsonl", "plan.json", "target.safetensors", "work/target.json"} <= set(names)
    for number in range(NUM_FLIPS):
        name = names[number % len(names)]
        flip(folder / name, int(rng.integers(len(published[name]))), int(rng.integers(8)))
        with pytest.raises(EaglepipeError):
            seal_cache(folder, load_plan(folder), unsealed.spec, max_length=256)
        assert not (folder / MANIFEST_NAME).exists(), name
        (folder / name).write_bytes(published[name])
    seal_cache(folder, load_plan(folder), unsealed.spec, max_length=256)
    assert contents(folder) == unsealed.sealed


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 3)


def take_from_its_neighbour(path: Path) -> None:
    shutil.copy(path.with_stem("00000"), path)


DAMAGED: dict[str, dict[str, Callable[[Path], None]]] = {
    "lost": {"shards/00001.arrow": lose, "head.json": lose, "work/corpus.json": lose},
    "cut": {"shards/00001.arrow": empty, "shards/00002.arrow": cut, "tokenizer/tokenizer.json": empty},
    "flipped": {"shards/00001.arrow": flip_middle, "target.safetensors": flip_middle, "drops.jsonl": flip_middle},
    "exchanged": {"shards/00001.arrow": take_from_its_neighbour, "shards/00002.json": take_from_its_neighbour},
    "documents": {"shards/00001.json": flip_middle, "plan.json": flip_middle, "work/target.json": flip_middle},
    "staged": {"work/tokens.arrow": flip_middle},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_rerun_makes_damaged_files_again_and_seals_the_same_bytes(
    unsealed: Unsealed, tmp_path: Path, kind: str
) -> None:
    folder = unsealed.copy(tmp_path)
    for name, damage in DAMAGED[kind].items():
        damage(folder / name)
    lines: list[str] = []
    result = run_precompute(unsealed.recipe(tmp_path), report=lines.append)
    assert contents(folder) == unsealed.sealed
    assert result.shards_written == sum(name.startswith("shards/") for name in DAMAGED[kind])
    assert "again" in "\n".join(lines) or kind == "staged"


def test_seal_names_the_files_and_how_to_make_them_again(unsealed: Unsealed, tmp_path: Path) -> None:
    folder = unsealed.copy(tmp_path)
    flip_middle(folder / "head.json")
    with pytest.raises(CorruptError, match=r"head\.json: its bytes.*without --seal"):
        run_precompute(unsealed.recipe(tmp_path), seal_only=True, report=quiet)
    (folder / "shards/00001.arrow").unlink()
    with pytest.raises(CacheError, match=r"missing: \[1\].*without --seal"):
        run_precompute(unsealed.recipe(tmp_path), seal_only=True, report=quiet)
    assert not (folder / MANIFEST_NAME).exists()


def test_a_disk_that_keeps_changing_bytes_is_an_error_and_no_cache(
    unsealed: Unsealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unsealed.copy(tmp_path)
    seal = stage.seal_cache

    def flip_then_seal(*args: object, **kwargs: object) -> object:
        flip_middle(folder / "shards" / "00001.arrow")
        return seal(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "seal_cache", flip_then_seal)
    with pytest.raises(CorruptError, match=r"00001\.arrow.*even after.*check this disk"):
        run_precompute(unsealed.recipe(tmp_path), report=quiet)
    assert not (folder / MANIFEST_NAME).exists()


def test_the_worker_that_seals_makes_the_files_of_another_again(unsealed: Unsealed, tmp_path: Path) -> None:
    folder = unsealed.copy(tmp_path)
    for name in ("shards/00000.arrow", "head.json"):
        flip_middle(folder / name)
    result = run_precompute(unsealed.recipe(tmp_path), worker=Worker(rank=1, count=2), report=quiet)
    assert result.complete and contents(folder) == unsealed.sealed


def test_a_worker_that_another_has_overtaken_leaves_nothing_in_the_sealed_cache(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other makes every shard and seals while this one loads the target."""
    recipe, publish = project.recipe(**{"cache.root": tmp_path}), stage.publish_fixed_files

    def overtaken(inputs: Stage1Inputs, plan: PrecomputePlan, target: TargetParts) -> None:
        monkeypatch.setattr(stage, "publish_fixed_files", publish)
        sealed.update(contents(Path(run_precompute(recipe, report=lambda _: None).folder)))
        publish(inputs, plan, target)

    sealed: dict[str, bytes] = {}
    monkeypatch.setattr(stage, "publish_fixed_files", overtaken)
    done = run_precompute(recipe, report=lambda _: None)
    assert done.shards_written == 0
    assert contents(Path(done.folder)) == sealed and "manifest.json" in sealed
