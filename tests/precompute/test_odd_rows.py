"""Odd rows, lost samples and samples beyond the target's positions, on a whole run of stage 1."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, FalconConfig, LlamaConfig, PretrainedConfig

from eaglepipe.cache.manifest import DROPS_FILE
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, DataError
from eaglepipe.estimate.prices import estimate_recipe
from eaglepipe.precompute.claims import Worker
from eaglepipe.precompute.preview import preview_recipe
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.target.positions import max_positions
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

LOUD = "§"  # one token of the byte-level tokenizers of these tests, or two


def good(number: int, answer: str = "Hello there.") -> dict[str, Any]:
    return {
        "id": number,
        "messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"{answer} {number}"},
        ],
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def settings(root: Path, rows: Path, **more: Any) -> dict[str, Any]:
    return {"cache.root": root, "data.sources": f"[{{path: {rows}}}]", **more}


def test_one_odd_row_of_twenty_one_is_listed_in_the_sealed_cache(project: TinyProject, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [good(number) for number in range(20)]
    rows.insert(10, {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "Yes."}]})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    recipe = project.recipe(**settings(tmp_path / "caches", path))
    lines: list[str] = []
    dry = run_precompute(recipe, dry_run=True, report=lines.append)
    listing = Path(dry.folder) / DROPS_FILE
    assert (dry.samples, dry.drops) == (20, {"no_content": 1})
    assert any(str(listing) in line and f"{path}:11: " in line for line in lines)
    sealed = run_precompute(recipe, report=quiet)
    assert sealed.folder == dry.folder and sealed.drops == {"no_content": 1}
    (listed,) = map(json.loads, listing.read_text().splitlines())
    assert (listed["where"], listed["source"], listed["reason"]) == (f"{path}:11", "rows", "no_content")
    assert verify_cache(Path(sealed.folder), full=True).ok
    listing.write_text("{}\n")
    assert not verify_cache(Path(sealed.folder)).ok
    assert f"{path}:11" in preview_recipe(recipe, count=20, colour=False)
    assert estimate_recipe(recipe).drops == {"no_content": 1}


def test_more_faulty_rows_than_allowed_stop_after_all_were_read_and_leave_nothing(
    project: TinyProject, tmp_path: Path
) -> None:
    rows: list[dict[str, Any] | str] = [good(number) for number in range(8)]
    odd: list[dict[str, Any] | str] = [{"messages": [{"role": "wizard", "content": "a"}]}, "{broken"]
    path = write_rows(tmp_path / "rows.jsonl", [odd[0], *rows, odd[1]])
    overrides = settings(tmp_path / "caches", path)
    table = r"2 of 10 rows \(20.00%\).*data.max_drop_fraction(.|\n)*rows.jsonl:1: (.|\n)*rows.jsonl:10: "
    for dry_run in (True, False):
        with pytest.raises(DataError, match=table):
            run_precompute(project.recipe(**overrides), dry_run=dry_run, report=quiet)
    with pytest.raises(DataError, match=table):
        estimate_recipe(project.recipe(**overrides))
    assert not list((tmp_path / "caches").iterdir())
    allowed = project.recipe(**overrides, **{"data.max_drop_fraction": 0.2})
    result = run_precompute(allowed, report=quiet)
    assert (result.samples, result.drops) == (8, {"not_json": 1, "unknown_role": 1})
    assert find_cache(project.recipe(**overrides)) == Path(result.folder)  # the fraction is no part of the identity
    write_rows(path, [odd[0], *rows, odd[1], odd[0]])  # the same good rows, so the same identity
    with pytest.raises(DataError, match=r"3 of 11 rows .*(.|\n)*unknown_role +2 "):
        run_precompute(allowed, report=quiet)
    with pytest.raises(CacheError):
        find_cache(project.recipe(**overrides, **{"data.max_length": 99}))


def test_one_id_for_two_rows_keeps_the_first_and_lists_the_other(project: TinyProject, tmp_path: Path) -> None:
    rows = [*(good(number) for number in range(30)), good(3, "Something else."), good(4)]
    recipe = project.recipe(**settings(tmp_path / "caches", write_rows(tmp_path / "rows.jsonl", rows)))
    result = run_precompute(recipe, report=quiet)
    assert (result.samples, result.drops) == (30, {"duplicate": 1, "repeated_id": 1})
    listed = [json.loads(line) for line in (Path(result.folder) / DROPS_FILE).read_text().splitlines()]
    assert {(line["where"], line["reason"]) for line in listed} == {
        ("sample id 'rows:3'", "repeated_id"),
        ("sample id 'rows:4'", "duplicate"),
    }


@pytest.fixture(scope="module")
def loud(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target whose states overflow float16 at one token, with rows of which a quarter hold it."""
    folder = tmp_path_factory.mktemp("loud")
    target = Path(shutil.copytree(project.target, folder / "target"))
    weights = load_file(target / "model.safetensors")
    token = AutoTokenizer.from_pretrained(target).encode(LOUD, add_special_tokens=False)[-1]
    weights["model.embed_tokens.weight"][token] = 1e5
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    write_rows(folder / "rows.jsonl", [good(n, LOUD if n % 4 == 0 else "Yes.") for n in range(24)])
    return folder


@pytest.mark.parametrize(
    ("change", "cause", "blamed"),
    [
        (
            {"target.dtype": "float16"},
            "refused",
            r"logits \(float16\)(.|\n)*set target.dtype to",
        ),
        ({"cache.aux_codec": "fp16"}, "codec_overflow", r"codec fp16 of cache\.aux_codec overflows"),
    ],
)
def test_lost_samples_name_their_cause_and_a_larger_fraction_seals_what_was_computed(
    project: TinyProject, loud: Path, tmp_path: Path, change: dict[str, str], cause: str, blamed: str
) -> None:
    more = {"target.path": loud / "target", "precompute.device": "cpu", **change}
    overrides = settings(tmp_path, loud / "rows.jsonl", **more)
    for worker in (None, Worker(rank=0, count=2)):
        with pytest.raises(
            DataError, match=r"6 of 24 samples \(25.00%\) are lost(.|\n)*" + cause + r"(.|\n)*" + blamed
        ):
            run_precompute(project.recipe(**overrides), worker=worker, report=quiet)
    assert not list(tmp_path.rglob("manifest.json"))
    lines: list[str] = []
    allowed = project.recipe(**overrides, **{"data.max_drop_fraction": 0.25})
    result = run_precompute(allowed, seal_only=True, report=lines.append)
    assert (result.shards_written, result.samples, result.drops) == (0, 18, {cause: 6})
    assert any("6 of 24 samples (25.00%)" in line for line in lines)
    assert Cache.open(Path(result.folder)).num_samples == 18


def test_samples_beyond_the_targets_positions_are_refused_before_any_forward(
    project: TinyProject, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [*(good(n) for n in range(5)), good(5, "Hello there. " * 400)])
    overrides = settings(tmp_path / "caches", path, **{"data.max_length": 1000})
    for dry_run in (True, False):
        with pytest.raises(DataError, match=r"1 of 6 samples .*512 positions.*data.max_length=512"):
            run_precompute(project.recipe(**overrides), dry_run=dry_run, report=quiet)
    with pytest.raises(DataError, match="512 positions"):
        estimate_recipe(project.recipe(**overrides))
    assert not list((tmp_path / "caches").iterdir())
    cut = run_precompute(project.recipe(**{**overrides, "data.max_length": 512}), dry_run=True, report=quiet)
    assert cut.samples == 6


def scaled(**rope: Any) -> PretrainedConfig:
    return LlamaConfig(max_position_embeddings=1024, rope_scaling={"rope_theta": 1e4, **rope})


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=128), 128),
        (scaled(rope_type="linear", factor=4.0), 4096),
        (scaled(rope_type="dynamic", factor=2.0), 2048),
        (scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024), 4096),
        (scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=256), 1024),
        (AutoConfig.for_model("gpt2", n_positions=77), 77),
        (AutoConfig.for_model("mistral", max_position_embeddings=900, sliding_window=32), 900),
        (FalconConfig(alibi=True), None),
        (AutoConfig.for_model("bloom"), None),
        (AutoConfig.for_model("mamba"), None),
    ],
)
def test_positions_follow_the_architecture_and_its_rope(config: PretrainedConfig, positions: int | None) -> None:
    assert max_positions(config) == positions
