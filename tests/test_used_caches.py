"""`train` names the cache that it reads, and notes what may have made another of the same words."""

import json
import os
import shutil
from pathlib import Path

import pytest

from eaglepipe.cache.storage import CacheShare, caches_of
from eaglepipe.commands.used_caches import cache_lines, report_caches
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from tests.cache.damage import rewrite
from tests.cache.derived import FEW
from tests.stage_one import quiet
from tests.tiny_project import TinyProject


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, project: TinyProject) -> Path:
    path = tmp_path_factory.mktemp("changing") / "rows.jsonl"
    path.write_text("".join(project.sources[0].read_text().splitlines(keepends=True)[:4]))
    return path


@pytest.fixture(scope="module")
def overrides(rows: Path) -> dict[str, object]:
    return {**FEW, "cache.root": rows.parent / "caches", "data.sources": json.dumps([{"path": str(rows)}])}


@pytest.fixture(scope="module")
def recipe(project: TinyProject, overrides: dict[str, object]) -> Recipe:
    recipe = project.recipe(**overrides)
    run_precompute(recipe, report=quiet)
    return recipe


def lines_of(recipe: Recipe) -> list[str]:
    return list(cache_lines(recipe, caches_of(recipe)))


def test_the_cache_is_named_once_and_an_unchanged_or_absent_corpus_is_no_news(recipe: Recipe, rows: Path) -> None:
    (line,) = lines_of(recipe)
    folder = caches_of(recipe)[0].folder
    assert str(folder) in line and "4 samples" in line and "complete since 20" in line
    away = rows.rename(rows.with_suffix(".away"))
    assert lines_of(recipe) == [line]
    away.rename(rows)


def test_a_corpus_that_changed_under_the_same_words_is_noted(
    recipe: Recipe, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, used = rows.read_text(), caches_of(recipe)
    rows.write_text(text.replace("the", "thee"))
    os.utime(rows, (2**31, 2**31))
    report_caches(recipe, used)
    printed = capsys.readouterr().err
    assert f"cache     {used[0].folder}: 4 samples" in printed
    assert f"{rows} is newer than this cache (2038-01-1" in printed
    assert "`eaglepipe precompute` with this recipe makes" in printed
    target = rows.parent / "target"
    target.mkdir()
    (target / "model.safetensors").touch()
    moved = recipe.model_copy(update={"target": recipe.target.model_copy(update={"path": str(target)})})
    assert f"{rows} and 1 more files are newer" in "\n".join(cache_lines(moved, used))
    begun = Path(run_precompute(recipe, dry_run=True, report=quiet).folder)
    assert f"{begun} has the same settings and is not complete" in "\n".join(lines_of(recipe))
    rewrite(begun / "plan.json", lambda plan: plan.update(identity="0" * 32))
    assert f"one cannot be read: {begun}" in "\n".join(lines_of(recipe))
    shutil.rmtree(begun)
    rows.write_text(text)


def test_caches_named_by_their_folders_are_named_without_notes(recipe: Recipe, rows: Path) -> None:
    os.utime(rows, (2**31, 2**31))
    folder = caches_of(recipe)[0].folder
    named = recipe.model_copy(update={"train": recipe.train.model_copy(update={"caches": ({"path": str(folder)},)})})
    shares = [CacheShare(folder=folder), CacheShare(folder=folder)]
    assert [line.split(":")[0] for line in cache_lines(named, shares)] == [f"cache     {folder}"] * 2
