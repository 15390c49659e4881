"""`cache repair` makes again what is damaged, byte for byte, touches nothing else, and finishes a killed repair."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.repair import repair_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, EaglepipeError
from eaglepipe.files.publish import PendingFile
from eaglepipe.precompute.redo import declared_recipe
from eaglepipe.recipe.tree import Recipe
from tests.cache.damage import flip
from tests.cache.derived import digests, make_cache
from tests.processes import run_eaglepipe
from tests.stage_one import contents, quiet, with_repetitions
from tests.tiny_project import TinyProject

BUDGET = "precompute.batch_tokens=1024"  # that of the project: the same forwards give the same bytes


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound cache of three shards or more, with a list of drops, and the settings that made it."""

    project: TinyProject
    folder: Path
    contents: dict[str, bytes]
    overrides: dict[str, str]

    def recipe(self) -> Recipe:
        return self.project.recipe(**self.overrides)


@pytest.fixture(scope="module")
def sound(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    overrides = with_repetitions(project)
    folder = make_cache(project, tmp_path_factory.mktemp("sound"), **overrides)
    assert (folder / "drops.jsonl").exists() and (folder / "shards" / "00002.arrow").exists()
    return Sound(project=project, folder=folder, contents=contents(folder), overrides=overrides)


@pytest.fixture
def damaged(sound: Sound, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound.folder, tmp_path / "cache"))


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 3)


DAMAGE: dict[str, dict[str, Callable[[Path], None]]] = {
    "shards": {
        "shards/00000.arrow": flip_middle,
        "shards/00001.arrow": cut,
        "shards/00001.json": lose,
        "shards/00002.json": flip_middle,
    },
    "files": {
        "head.json": lose,
        "target.safetensors": flip_middle,
        "tokenizer/tokenizer.json": cut,
        "drops.jsonl": cut,
        "plan.json": lose,
    },
    "manifest": {"manifest.json": flip_middle, "shards/00001.arrow": flip_middle, "vocab.safetensors": flip_middle},
    "documents": {
        "plan.json": flip_middle,
        "manifest.json": cut,
        "shards/00001.json": flip_middle,
        "schema/README.md": lose,
    },
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_get_their_bytes_back(sound: Sound, damaged: Path, kind: str) -> None:
    for name, damage in DAMAGE[kind].items():
        damage(damaged / name)
    needs_recipe = "plan.json" in DAMAGE[kind]
    if needs_recipe:
        with pytest.raises(CacheError, match=r"plan\.json: lost or damaged.*--recipe"):
            repair_cache(damaged, overrides=[BUDGET], report=quiet)
    report = repair_cache(damaged, recipe=sound.recipe() if needs_recipe else None, overrides=[BUDGET], report=quiet)
    assert contents(damaged) == sound.contents
    assert {name.split(".")[0] for name in report.redone} == {name.split(".")[0] for name in DAMAGE[kind]}
    assert report.new_manifest == ("manifest.json" in DAMAGE[kind])


def test_sound_samples_are_kept_when_other_forwards_give_other_bytes(sound: Sound, damaged: Path) -> None:
    """A larger batch is what another device is: the damaged sample differs in its last bits, and no other does."""
    cache = Cache.open(damaged)
    number = next(n for n, shard in enumerate(cache.manifest.shards) if shard.samples > 1)
    flip_middle(damaged / cache.manifest.shards[number].path)
    before = digests(sound.folder)
    report = repair_cache(damaged, overrides=["precompute.batch_tokens=64"], report=quiet)
    after = digests(damaged)
    assert report.samples_computed == 1 and list(after) == list(before)
    assert sum(after[sample] != before[sample] for sample in before) <= 1
    assert verify_cache(damaged, full=True).ok and Cache.open(damaged).identity == cache.identity


def test_sound_cache_is_left_as_it_is_without_its_target(sound: Sound, damaged: Path) -> None:
    report = repair_cache(damaged, overrides=["target.path=/nowhere"], report=quiet)
    assert not report.redone and not report.new_manifest
    flip_middle(damaged / "shards" / "00001.json")  # rebuilt from its shard
    assert set(repair_cache(damaged, overrides=["target.path=/nowhere"], report=quiet).redone) == {"shards/00001.json"}
    assert contents(damaged) == sound.contents


def kill_before_publishing(name: str) -> None:
    publish = PendingFile.publish

    def killed(self: PendingFile, *args: object, **kwargs: object) -> None:
        if self.path.name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(self, *args, **kwargs)  # type: ignore[arg-type]

    PendingFile.publish = killed  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["00001.json", "manifest.json"])
def test_killed_repair_is_finished_by_the_next(sound: Sound, damaged: Path, name: str) -> None:
    budget = "precompute.batch_tokens=64"  # gives other bytes, and so a new manifest
    flip_middle(damaged / "shards" / "00000.arrow")
    for lost in ("00001.arrow", "00001.json"):
        (damaged / "shards" / lost).unlink()
    killed = run_eaglepipe("cache", "repair", damaged, budget, before=partial(kill_before_publishing, name))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(EaglepipeError, match="cache repair"):
        Cache.open(damaged)
    repair_cache(damaged, overrides=[budget], report=quiet)
    report = verify_cache(damaged, full=True)
    assert report.ok and not report.notes, report
    assert not (damaged / "work").exists()
    assert list(digests(damaged)) == list(digests(sound.folder))


def test_other_corpus_or_target_is_refused_by_field(sound: Sound, damaged: Path, tmp_path: Path) -> None:
    flip_middle(damaged / "shards" / "00001.arrow")
    before = contents(damaged)
    with pytest.raises(CacheError, match=r"nothing is repaired(.|\n)*data\.fingerprint"):
        repair_cache(damaged, overrides=[f"data.sources=[{{path: {sound.project.sources[2]}}}]"], report=quiet)
    target = Path(shutil.copytree(sound.project.target, tmp_path / "target"))
    flip(target / "model.safetensors", -1)
    with pytest.raises(CacheError, match=r"nothing is repaired(.|\n)*target\.weights"):
        repair_cache(damaged, overrides=[f"target.path={target}"], report=quiet)
    with pytest.raises(EaglepipeError, match=r"those cannot be read.*gone.*target\.path="):
        repair_cache(damaged, overrides=[f"target.path={tmp_path / 'gone'}"], report=quiet)
    assert contents(damaged) == before


def test_recoded_cache_is_refused_with_the_command_that_makes_it_again(sound: Sound, tmp_path: Path) -> None:
    source = Path(shutil.copytree(sound.folder, tmp_path / sound.folder.name))
    recoded = tmp_path / "recoded"
    recode_cache(recoded, source, Changes(aux_codec="int4"))
    flip_middle(recoded / "shards" / "00000.json")
    repair_cache(recoded, report=quiet)
    flip_middle(recoded / "shards" / "00000.arrow")
    with pytest.raises(CacheError, match=rf"cache recode NEW_FOLDER {source} .*--aux-codec int4"):
        repair_cache(recoded, report=quiet)


def test_incomplete_cache_is_refused_with_the_command_that_finishes_it(damaged: Path) -> None:
    (damaged / "manifest.json").unlink()
    with pytest.raises(CacheError, match="eaglepipe precompute"):
        repair_cache(damaged, report=quiet)
    assert not (damaged / "work").exists()


def test_file_that_leads_out_of_the_folder_is_replaced_and_its_end_left_alone(sound: Sound, damaged: Path) -> None:
    outside = damaged.parent / "outside.arrow"
    link = damaged / "shards" / "00001.arrow"
    link.rename(outside)
    link.symlink_to(outside)
    repair_cache(damaged, overrides=[BUDGET], report=quiet)
    assert not link.is_symlink() and outside.read_bytes() == sound.contents["shards/00001.arrow"]
    assert contents(damaged) == sound.contents


def test_a_cache_does_not_let_its_target_run_code(sound: Sound) -> None:
    plan = load_plan(sound.folder)
    target = {**plan.declared["target"], "trust_remote_code": True}
    plan = plan.model_copy(update={"declared": {**plan.declared, "target": target}})
    assert not declared_recipe(sound.folder, plan, []).target.trust_remote_code
    assert declared_recipe(sound.folder, plan, ["target.trust_remote_code=true"]).target.trust_remote_code
