"""What a recipe with an engine gives before the engine starts, on a machine without it."""

import json
import sys
from pathlib import Path

import pytest

from eaglepipe.cache.manifest import PLAN_NAME
from eaglepipe.cache.storage import declared_sections
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import EaglepipeError
from eaglepipe.estimate.prices import estimate_recipe
from eaglepipe.precompute.plan import STAGING
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.precompute.staging import StagedTokens
from tests.cache.derived import few
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

SERVED = {"target.engine": "vllm"}


def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the environment's packages from `importlib.metadata`, as if vLLM were not among them."""
    found = [path for path in sys.path if not list(Path(path).glob("vllm*.dist-info"))]
    monkeypatch.setattr(sys, "path", found)


def test_a_dry_run_and_an_estimate_need_no_engine(project: TinyProject, tmp_path: Path) -> None:
    recipe = project.recipe(**{"cache.root": str(tmp_path), **few(project), **SERVED})
    result = run_precompute(recipe, dry_run=True, report=quiet)
    assert result.samples == 8 and not result.complete
    assert estimate_recipe(recipe).to_json()


def test_a_cache_is_told_apart_by_the_engine_and_not_by_how_it_runs(project: TinyProject, tmp_path: Path) -> None:
    overrides = {"cache.root": str(tmp_path), **few(project)}
    plain = project.recipe(**overrides)
    served = [
        project.recipe(**overrides, **SERVED, **{"target.engine_args": args})
        for args in ("{}", "{tensor_parallel_size: 4, gpu_memory_utilization: 0.7}", "{quantization: fp8}")
    ]
    identities = [run_precompute(recipe, dry_run=True, report=quiet).identity for recipe in (plain, *served)]
    assert identities[1] == identities[2]
    assert len(set(identities)) == 3
    assert declared_sections(served[0]) == declared_sections(served[1]) != declared_sections(served[2])
    assert "engine" not in declared_sections(plain)["target"]


def test_samples_longer_than_the_engine_takes_are_dropped_and_counted(project: TinyProject, tmp_path: Path) -> None:
    overrides = {"cache.root": str(tmp_path), **few(project), **SERVED, "data.max_length": 256}
    folder = Path(run_precompute(project.recipe(**overrides), dry_run=True, report=quiet).folder)
    lengths = sorted(sample.input_ids.size for sample in _staged(folder))
    limit = int(lengths[3])
    lines: list[str] = []
    recipe = project.recipe(**overrides, **{"target.engine_args.max_model_len": limit})
    result = run_precompute(recipe, dry_run=True, report=lines.append)
    assert sorted(sample.input_ids.size for sample in _staged(Path(result.folder))) == [
        n for n in lengths if n <= limit
    ]
    assert result.drops == {"too_long_for_engine": sum(length > limit for length in lengths)}
    assert f"tokens, and target.engine_args.max_model_len is {limit}" in "".join(lines)


def _staged(folder: Path) -> list[TokenSample]:
    tokens = StagedTokens(folder / STAGING)
    return [tokens.read(number) for number in range(len(tokens))]


def test_the_missing_engine_is_named_with_its_command_and_the_plan_stays(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project.recipe(**{"cache.root": str(tmp_path), **few(project), **SERVED})
    folder = Path(run_precompute(recipe, dry_run=True, report=quiet).folder)
    without_vllm(monkeypatch)
    with pytest.raises(EaglepipeError, match=r"vLLM .* is needed, and is not installed.*pip install"):
        run_precompute(recipe, report=quiet)
    assert json.loads((folder / PLAN_NAME).read_text())["samples"] == 8
