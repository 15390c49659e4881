"""What a plan reads: each row of the corpus once, and of a target on the Hub no weights."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import eaglepipe.chat.sources
import eaglepipe.target.load
from eaglepipe.cache.clean import clean_cache
from eaglepipe.estimate.prices import estimate_recipe
from eaglepipe.files.leftovers import leftovers
from eaglepipe.precompute.content_identity import read_identity
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

HUB_ID = "org/tiny-target"
_listeners: list[list[str]] = []


@cache
def _listen() -> None:
    """Hear of opened files from now on: a hook stays, and every test after it pays for it."""

    def note_opened(event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            for paths in _listeners:
                paths.append(str(args[0]))

    sys.addaudithook(note_opened)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    _listen()
    paths: list[str] = []
    _listeners.append(paths)
    try:
        yield paths
    finally:
        _listeners.remove(paths)


@pytest.fixture
def parsed_rows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Places of the rows that were parsed, in order."""
    places: list[str] = []
    parse = eaglepipe.chat.sources.parse_row

    def counted(row: dict[str, object], layout: str, where: str) -> object:
        places.append(where)
        return parse(row, layout, where)  # type: ignore[arg-type]

    monkeypatch.setattr(eaglepipe.chat.sources, "parse_row", counted)
    return places


def num_rows(project: TinyProject) -> int:
    return sum(len(path.read_text().splitlines()) for path in project.sources)


def plan_only(recipe: Recipe) -> object:
    return run_precompute(recipe, dry_run=True, report=quiet)


@pytest.mark.parametrize("command", [plan_only, estimate_recipe])
def test_each_row_is_parsed_once(
    project: TinyProject, tmp_path: Path, parsed_rows: list[str], command: Callable[[Recipe], object]
) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path})
    for _ in range(2):  # planned, and planned again over the staged corpus
        command(recipe)
        assert len(parsed_rows) == len(set(parsed_rows)) == num_rows(project)
        parsed_rows.clear()


def test_complete_cache_is_found_by_parsing_each_row_once(
    project: TinyProject, sealed_cache: Path, parsed_rows: list[str]
) -> None:
    assert run_precompute(project.recipe(**{"cache.root": sealed_cache.parent}), report=quiet).complete
    assert len(parsed_rows) == num_rows(project)


def test_estimate_reads_no_weights(project: TinyProject, tmp_path: Path) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path})
    with opened_files() as opened:
        report = estimate_recipe(recipe)
    assert any(path.endswith("config.json") for path in opened)
    assert not [path for path in opened if path.endswith(".safetensors")]
    bare = Path(shutil.copytree(project.target, tmp_path / "target", ignore=shutil.ignore_patterns("*.safetensors")))
    without = estimate_recipe(project.recipe(**{"cache.root": tmp_path, "target.path": bare}))
    assert without.tokens == report.tokens and without.encodings[0].by_column == report.encodings[0].by_column


class FakeHub:
    """A Hub with one model: `snapshot_download` puts the files asked for into a local folder."""

    def __init__(self, target: Path, cache: Path) -> None:
        self._target, self._cache = target, cache
        self.patterns: list[list[str]] = []  # of each download

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False, **_: object
    ) -> str:
        assert repo_id == HUB_ID
        if not local_files_only:
            assert allow_patterns is not None
            self.patterns.append(allow_patterns)
            for path in self._target.iterdir():
                if any(path.match(pattern) for pattern in allow_patterns):
                    self._cache.mkdir(exist_ok=True)
                    shutil.copy(path, self._cache)
        if not self._cache.is_dir():
            raise LocalEntryNotFoundError("nothing is cached")
        return str(self._cache)


@pytest.fixture
def hub(project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(project.target, tmp_path / "hub")
    monkeypatch.setattr(eaglepipe.target.load, "snapshot_download", hub.snapshot_download)
    return hub


def test_plan_of_a_hub_target_downloads_config_and_tokenizer_only(
    project: TinyProject, tmp_path: Path, hub: FakeHub
) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path / "caches", "target.path": HUB_ID})
    lines: list[str] = []
    estimate_recipe(recipe)
    result = run_precompute(recipe, dry_run=True, report=lines.append)
    assert hub.patterns
    assert not [pattern for patterns in hub.patterns for pattern in patterns if "safetensors" in pattern]
    assert not list((tmp_path / "hub").glob("*.safetensors"))
    assert (result.identity, result.folder, result.complete) == ("", "", False)
    assert "once the target's weights are downloaded" in lines[0]
    local = run_precompute(project.recipe(**{"cache.root": tmp_path / "local"}), dry_run=True, report=quiet)
    assert (result.tokens, result.shards, result.bytes) == (local.tokens, local.shards, local.bytes)
    assert not list((tmp_path / "caches").iterdir())


def test_plan_of_a_hub_target_has_an_identity_once_its_weights_are_local(
    project: TinyProject, tmp_path: Path, hub: FakeHub
) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path / "caches", "target.path": HUB_ID})
    identity = read_identity(read_stage1_inputs(recipe)).digest  # downloads the weights
    result = run_precompute(recipe, dry_run=True, report=quiet)
    local = run_precompute(project.recipe(**{"cache.root": tmp_path / "local"}), dry_run=True, report=quiet)
    assert result.identity == identity == local.identity


def test_tokens_of_a_killed_plan_are_cleaned_with_the_cache_of_that_name(project: TinyProject, tmp_path: Path) -> None:
    folder = Path(run_precompute(project.recipe(**{"cache.root": tmp_path}), dry_run=True, report=quiet).folder)
    assert not leftovers(tmp_path)
    (tmp_path / ".tiny.tokens.arrow.0123.tmp").touch()
    (tmp_path / ".other.tokens.arrow.0123.tmp").touch()
    assert clean_cache(folder) == [tmp_path / ".tiny.tokens.arrow.0123.tmp"]
    assert [path.name for path in leftovers(tmp_path)] == [".other.tokens.arrow.0123.tmp"]


def test_changed_corpus_is_another_cache(project: TinyProject, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there, you."}]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    recipe = project.recipe(**{"cache.root": tmp_path / "caches", "data.sources": f"[{{path: {rows}}}]"})
    first = run_precompute(recipe, dry_run=True, report=quiet)
    row["messages"][1]["content"] += " Good day."
    rows.write_text(json.dumps(row) + "\n")
    lines: list[str] = []
    second = run_precompute(recipe, dry_run=True, report=lines.append)
    assert first.identity != second.identity and "data.fingerprint" in lines[0]


@pytest.mark.parametrize(("settings", "shown"), [({}, True), ({"target.dtype": "float32"}, False)])
def test_the_plan_names_the_dtype_that_this_processor_is_faster_in(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], shown: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    lines: list[str] = []
    recipe = project.recipe(**settings, **{"cache.root": tmp_path, "precompute.device": "cpu"})
    run_precompute(recipe, dry_run=True, report=lines.append)
    found = [line for line in lines if line.startswith("dtype")]
    assert bool(found) is shown and all("target.dtype=bfloat16" in line for line in found)
