"""The paths that only an accelerator takes; on other machines they are skipped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.recipe.family_settings import Eagle3DraftConfig
from eaglepipe.target_head import HeadSpec, TargetHead
from eaglepipe.train import train_from
from eaglepipe.training.data.batch import DataPosition, StepPlan
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.objectives.builders import build_eagle3_draft
from eaglepipe.training.objectives.eagle3 import Eagle3Objective, draw_slots
from eaglepipe.training.run.metrics import read_metrics
from tests.training.tiny_source import tiny_recipe, tiny_source

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("supervision", ["hidden", "sparse"])
def test_float32_on_the_device_follows_the_cpu(tmp_path: Path, supervision: str) -> None:
    for device in ("cpu", "cuda"):
        recipe = tiny_recipe(tmp_path / device, device=device, dtype="float32")
        train_from(recipe, tiny_source(supervision=supervision))
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-2)


def test_bfloat16_is_the_default_there_and_stays_close(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path / "cpu", max_steps=1), tiny_source())
    train_from(tiny_recipe(tmp_path / "cuda", device="cuda", max_steps=1), tiny_source())
    assert losses(tmp_path / "cuda")[:2] == pytest.approx(losses(tmp_path / "cpu")[:2], rel=5e-2)


def test_a_run_moves_between_devices(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path, device="cuda", max_steps=3), tiny_source())
    assert train_from(tiny_recipe(tmp_path, device="cpu"), tiny_source()).steps == 12


def test_half_precision_head_returns_float32_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 256, generator=generator).bfloat16() for n in (33, 500))
    head = TargetHead(weight=weight.cuda(), bias=None, spec=HeadSpec())
    expected = (hidden.double() @ weight.double().T).softmax(1)
    torch.testing.assert_close(head.probabilities(hidden.cuda()).cpu().double(), expected, rtol=1e-4, atol=1e-7)


def test_a_forward_and_its_backward_never_wait_for_the_device() -> None:
    source, device = tiny_source(), torch.device("cuda")
    objective = Eagle3Objective(tiny_recipe(Path(), device="cuda").train)
    draft = build_eagle3_draft(source, Eagle3DraftConfig(), seed=0).to(device)
    module, decode = (
        objective.make_module(draft, source).to(device),
        objective.make_decoder(source, device=device, dtype=torch.bfloat16),
    )
    numbers = np.arange(4)
    plan = StepPlan(samples=numbers, micro_batches=((tuple(numbers.tolist()),),), after=DataPosition())
    draw = draw_slots(objective.config.ttt_steps)
    with Loader(source, [plan], draw=draw, device=device, prefetch_batches=1) as loader:
        ((_, batches),) = ((header, list(batches)) for header, batches in loader)
    for guard in ("default", "error"):  # the first pass sets libraries up
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(guard)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = module.compute_loss(**decode(batches[0])).loss
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
