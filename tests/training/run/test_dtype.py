"""`train.dtype: auto`: chosen by the processor when a run begins, and kept wherever it goes on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eaglepipe.doctor import examine
from eaglepipe.errors import CorruptError
from eaglepipe.files.digests import digests_to_json
from eaglepipe.files.hashing import digest_bytes
from eaglepipe.recipe.load import load_recipe
from eaglepipe.train import train_from
from eaglepipe.training.run import precision
from eaglepipe.training.run.checkpoint import load_checkpoint
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.training.run.precision import choose_dtype
from eaglepipe.training.run.ranks.distributed import World
from tests.training.tiny_source import HIDDEN, tiny_recipe, tiny_source

Processor = Callable[[bool], None]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Processor:
    """Let torch report that this processor has AMX, or that it has none."""

    def become(has_amx: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
        monkeypatch.setattr(torch.cpu, "_init_amx", lambda: has_amx)
        monkeypatch.setattr(precision, "NARROW", HIDDEN)

    return become


def run(folder: Path, dtype: str, steps: int) -> str:
    """Train up to a step, with rates that do not depend on it; returns the dtype that the report names."""
    steady = {"warmup_ratio": 0.0, "min_learning_rate_ratio": 1.0, "eval_every_steps": 2}
    return train_from(tiny_recipe(folder, dtype=dtype, max_steps=steps, **steady), tiny_source()).dtype


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of runs of 4 steps that state their dtype."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in ("float32", "bfloat16")}
    return {dtype: losses(folder) for dtype, folder in folders.items() if run(folder, dtype, 4)}


@pytest.mark.parametrize("has_amx", [True, False])
def test_a_run_keeps_the_dtype_that_it_began_with_on_another_processor(
    tmp_path: Path,
    processor: Processor,
    whole: dict[str, list[float]],
    has_amx: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun, other = ("bfloat16", "float32") if has_amx else ("float32", "bfloat16")
    processor(has_amx)
    assert run(tmp_path, "auto", 2) == begun
    assert f"train.dtype auto: {begun}; this processor" in capsys.readouterr().err
    processor(not has_amx)
    assert run(tmp_path, "auto", 4) == begun
    assert f"{begun}, as the run began; train.dtype={other} is faster here" in capsys.readouterr().err
    assert losses(tmp_path) == whole[begun] != whole[other]
    assert load_recipe(tmp_path / "recipe.yaml").train.dtype == begun, "so that its evaluation computes alike"


def test_a_dtype_that_is_stated_replaces_that_of_the_run_and_is_kept_from_then_on(
    tmp_path: Path, processor: Processor
) -> None:
    processor(False)
    starts = (("auto", 2), ("bfloat16", 4), ("auto", 6))
    assert [run(tmp_path, dtype, steps) for dtype, steps in starts] == ["float32", "bfloat16", "bfloat16"]


def test_a_run_of_a_release_that_recorded_no_dtype_goes_on_in_float32(
    tmp_path: Path, processor: Processor, whole: dict[str, list[float]]
) -> None:
    processor(False)
    run(tmp_path, "auto", 2)
    rewrite_state(tmp_path / "checkpoints" / "step-0000002", lambda values: values.pop("dtype"))
    processor(True)
    assert run(tmp_path, "auto", 4) == "float32" and losses(tmp_path) == whole["float32"]


@pytest.mark.parametrize("value", ["float16", 7, ["float32"]])
def test_a_recorded_dtype_that_no_run_has_is_damage(tmp_path: Path, value: Any) -> None:
    run(tmp_path, "float32", 2)
    folder = tmp_path / "checkpoints" / "step-0000002"
    rewrite_state(folder, lambda values: values.update(dtype=value))
    with pytest.raises(CorruptError, match=r"state\.json: .*dtype"):
        load_checkpoint(folder)


def rewrite_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's state, with the digests that go with it."""
    file = folder / "state.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    digests = {path.name: digest_bytes(path.read_bytes()) for path in folder.iterdir() if path.name != "COMPLETE"}
    (folder / "COMPLETE").write_text(json.dumps(digests_to_json(digests)))


class WithSlowRank(World):
    """A world one of whose other ranks raises every flag."""

    def any(self, flag: bool) -> bool:
        return True


def test_ranks_compute_in_one_dtype_the_one_that_none_is_slow_in(tmp_path: Path, processor: Processor) -> None:
    processor(True)
    config, cpu = tiny_recipe(tmp_path, dtype="auto").train, torch.device("cpu")
    assert choose_dtype(config, World(device=cpu), width=HIDDEN, begun=False, recorded=None)[0] == "bfloat16"
    name, notes = choose_dtype(config, WithSlowRank(device=cpu), width=HIDDEN, begun=False, recorded=None)
    assert name == "float32" and notes == ("train.dtype auto: float32; another rank is slow in bfloat16",)


def test_narrow_drafts_stay_in_float32(tmp_path: Path, processor: Processor) -> None:
    processor(True)
    config, cpu = tiny_recipe(tmp_path, dtype="auto").train, World(device=torch.device("cpu"))
    assert choose_dtype(config, cpu, width=HIDDEN - 1, begun=False, recorded=None)[0] == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the line is then about the CUDA device")
@pytest.mark.parametrize(("has_amx", "line"), [(True, "bfloat16: .* by AMX"), (False, "float32: .* no AMX")])
def test_doctor_names_the_dtype_and_the_reason(processor: Processor, has_amx: bool, line: str) -> None:
    processor(has_amx)
    assert re.match(line, examine()["train.dtype auto"])
