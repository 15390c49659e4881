"""Files of one cache under the name, or among the files, of another: refused, never found, never called complete."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.cache.clean import clean_cache
from eaglepipe.cache.opening import load_manifest, load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.cache_tools.describe import describe_cache, describe_root
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, CorruptError, TargetError
from eaglepipe.files.hashing import hash_json
from eaglepipe.precompute.existing_caches import find_by_content
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from tests.cache.damage import declare_current_state, rewrite
from tests.cache.derived import FEW
from tests.stage_one import quiet
from tests.tiny_project import TinyProject


@dataclass(frozen=True, kw_only=True)
class Root:
    """A root with the complete cache of a corpus, and the name of the cache of the same file after it was changed."""

    folder: Path
    recipe: Recipe  # its corpus has changed
    complete: Path
    begun: Path  # planned and staged, for the corpus as it is

    @property
    def identities(self) -> tuple[str, str]:
        return load_plan(self.complete).identity, load_plan(self.begun).identity


@pytest.fixture(scope="module")
def made(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Root:
    folder = tmp_path_factory.mktemp("mixed")
    rows, lines = folder / "rows.jsonl", project.sources[0].read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:4]))
    recipe = project.recipe(**FEW, **{"cache.root": folder / "root", "data.sources": json.dumps([{"path": str(rows)}])})
    complete = Path(run_precompute(recipe, report=quiet).folder)
    rows.write_text("".join(lines[4:8]))
    begun = Path(run_precompute(recipe, dry_run=True, report=quiet).folder)
    return Root(folder=folder / "root", recipe=recipe, complete=complete, begun=begun)


@pytest.fixture
def root(made: Root, tmp_path: Path) -> Root:
    folder = Path(shutil.copytree(made.folder, tmp_path / "root"))
    recipe = made.recipe.model_copy(update={"cache": made.recipe.cache.model_copy(update={"root": str(folder)})})
    return Root(folder=folder, recipe=recipe, complete=folder / made.complete.name, begun=folder / made.begun.name)


def whole_cache(root: Root) -> None:
    shutil.rmtree(root.begun)
    shutil.copytree(root.complete, root.begun)


def symbolic_link(root: Root) -> None:
    shutil.rmtree(root.begun)
    root.begun.symlink_to(root.complete)


def all_but_the_plan(root: Root) -> None:
    plan = (root.begun / "plan.json").read_bytes()
    shutil.copytree(root.complete, root.begun, dirs_exist_ok=True)
    (root.begun / "plan.json").write_bytes(plan)


def manifest_alone(root: Root) -> None:
    shutil.copy(root.complete / "manifest.json", root.begun)


def manifest_without_any_plan(root: Root) -> None:
    all_but_the_plan(root)
    (root.begun / "plan.json").unlink()


MIXTURES = [whole_cache, symbolic_link, all_but_the_plan, manifest_alone, manifest_without_any_plan]


@pytest.mark.parametrize("mix", MIXTURES)
def test_files_of_another_cache_under_this_ones_name_are_refused_by_both_identities(
    root: Root, mix: Callable[[Root], None]
) -> None:
    other, own = root.identities
    mix(root)
    lines: list[str] = []
    with pytest.raises(CacheError, match=rf"(?s){root.begun}.*{other}.*{own}.*move the folder away"):
        run_precompute(root.recipe, report=lines.append)
    assert not [line for line in lines if "complete" in line]
    listed = {Path(info["folder"]).name: info.get("error") for info in describe_root(root.folder)}
    assert listed[root.complete.name] is None
    assert listed[root.begun.name] is not None
    assert find_cache(root.recipe) == root.complete
    assert find_by_content(root.recipe) is None


@pytest.mark.parametrize("mix", MIXTURES)
def test_a_root_with_nothing_but_a_mixture_trains_nothing(root: Root, mix: Callable[[Root], None]) -> None:
    mix(root)
    if mix is symbolic_link:
        root.begun.unlink()
        root.complete.rename(root.begun)
    else:
        shutil.rmtree(root.complete)
    with pytest.raises(CacheError, match=rf"no cache for recipe 'tiny' .*one cannot be read: .*{root.begun.name}"):
        find_cache(root.recipe)


@pytest.mark.parametrize("mix", [all_but_the_plan, manifest_alone])
def test_a_manifest_beside_the_plan_of_another_cache_is_refused_by_every_reader(
    root: Root, mix: Callable[[Root], None]
) -> None:
    other, own = root.identities
    mix(root)
    for read in (Cache.open, load_manifest, describe_cache, clean_cache):
        with pytest.raises(CacheError, match=f"{other}.*{own}"):
            read(root.begun)
    assert other in verify_cache(root.begun).problems[0]
    if mix is manifest_alone:
        assert (root.begun / "work" / "tokens.arrow").exists()


def test_a_plan_whose_identity_is_not_the_hash_of_its_fields_is_refused(root: Root) -> None:
    def other_target(plan: dict[str, Any]) -> None:
        plan["identity_fields"]["target"]["weights"] = "0" * 32

    rewrite(root.complete / "plan.json", other_target)
    for read in (Cache.open, load_manifest):
        with pytest.raises(CorruptError, match=r"plan\.json: its identity is .* changed after it was published"):
            read(root.complete)
    assert "plan.json" in verify_cache(root.complete).problems[0]
    shutil.rmtree(root.begun)
    with pytest.raises(CacheError, match="one cannot be read"):
        find_cache(root.recipe)


def test_a_plan_rewritten_to_another_identity_is_not_that_cache(root: Root) -> None:
    """Consistent in itself and with its folder's name, it still contradicts the manifest."""
    plan = json.loads((root.begun / "plan.json").read_text())
    own = {name: plan[name] for name in ("identity", "identity_fields")}
    all_but_the_plan(root)
    shutil.copy(root.complete / "plan.json", root.begun)
    rewrite(root.begun / "plan.json", lambda document: document.update(own))
    with pytest.raises(CacheError, match=root.identities[0]):
        run_precompute(root.recipe, report=quiet)
    rewrite(root.begun / "manifest.json", lambda document: document.update(identity=own["identity"]))
    with pytest.raises(CorruptError, match=root.begun.name):  # its plan, sidecars and shards are not those it lists
        run_precompute(root.recipe, report=quiet)
    assert hash_json(own["identity_fields"]) == own["identity"]
    for sidecar in (root.begun / "shards").glob("*.json"):
        rewrite(sidecar, lambda document: document.update(identity=own["identity"]))
    declare_current_state(root.begun)
    with pytest.raises(CorruptError, match=r"00000\.arrow: belongs to another cache"):
        run_precompute(root.recipe, report=quiet)


def test_a_renamed_cache_is_valid_under_its_new_name(root: Root) -> None:
    shutil.rmtree(root.begun)
    renamed = root.complete.rename(root.folder / "kept for later")
    assert find_cache(root.recipe) == renamed
    named_otherwise = renamed.rename(root.folder / f"tiny-{'0' * 12}")
    assert Cache.open(named_otherwise).num_samples == 4
    with pytest.raises(CacheError, match="named after cache 000000000000…, and holds cache"):
        find_cache(root.recipe)


def test_of_two_caches_of_one_identity_the_complete_one_is_found(root: Root) -> None:
    done = Path(run_precompute(root.recipe, report=quiet).folder)
    renamed = done.rename(root.folder / "a-complete-one")
    lines: list[str] = []
    run_precompute(root.recipe, dry_run=True, report=lines.append)
    assert lines == [f"{renamed}: already complete"]
    assert find_by_content(root.recipe) == renamed


def test_a_complete_cache_without_one_of_its_shards_is_not_called_complete(root: Root) -> None:
    done = Path(run_precompute(root.recipe, report=quiet).folder)
    (done / "shards" / "00000.arrow").unlink()
    with pytest.raises(CorruptError, match=r"00000\.arrow"):
        run_precompute(root.recipe, report=quiet)


def test_without_the_target_only_a_cache_of_the_same_rows_is_complete(project: TinyProject, root: Root) -> None:
    lines: list[str] = []
    target, rows = project.target, Path(root.recipe.data.sources[0].path)
    gone = target.rename(project.folder / "elsewhere")
    try:
        with pytest.raises(TargetError):
            run_precompute(root.recipe, report=lines.append)
        assert lines == [
            f"{root.complete} was made from other rows than data.sources has now; a new cache needs the target"
        ]
        away = rows.rename(rows.with_suffix(".away"))
        try:
            assert run_precompute(root.recipe, report=quiet).folder == str(root.complete)
        finally:
            away.rename(rows)
    finally:
        gone.rename(target)
