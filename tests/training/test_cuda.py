"""The paths that only an accelerator takes; on other machines they are skipped."""

from pathlib import Path

import pytest
import torch
from tiny_source import tiny_recipe, tiny_source

from eaglepipe.cache.head import HeadSpec
from eaglepipe.train import train_from
from eaglepipe.training.metrics import read_metrics
from eaglepipe.training.supervision import TargetHead

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
