"""DSpark trained from a cache: a draft that reloads with its heads, learned forecasts, exact continuation."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.decoding.dspark_steps import DsparkSteps
from eaglepipe.decoding.strategies import ParallelDrafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.eagle.dflash.dspark import DSparkDraftModel
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import train_from
from tests.training.objectives.test_dflash import losses, spare_source
from tests.training.tiny_source import tiny_recipe

BLOCK = 4
KEPT = {
    "output_dir", "epochs", "batch_tokens", "micro_batch_tokens", "learning_rate", "device", "dtype",
    "heldout_fraction",
}  # fmt: skip


def recipe(folder: Path, draft: dict[str, Any] | None = None, **train: Any) -> Recipe:
    values = tiny_recipe(folder).model_dump(mode="json")
    kept = {name: value for name, value in values["train"].items() if name in KEPT}
    values["train"] = {**kept, "objective": "dspark", "block_size": BLOCK, **train}
    values["draft"] = {"num_hidden_layers": 1, "markov_rank": 8, **(draft or {})}
    return parse_recipe(values)


def test_it_trains_a_draft_that_reloads_with_both_heads(tmp_path: Path) -> None:
    result = train_from(recipe(tmp_path, epochs=3, draft={"markov_head_type": "gated"}), spare_source())
    assert result.heldout_loss_end < result.heldout_loss_start
    assert len(result.accuracy_by_depth) == BLOCK
    saved = load_file(tmp_path / "draft" / "model.safetensors")
    loaded = DSparkDraftModel.from_pretrained(tmp_path / "draft")
    assert loaded.state_dict().keys() == saved.keys()
    assert {"markov_head.gate_proj.bias", "confidence_head.proj.weight"} <= saved.keys()
    assert loaded.config.sample_from_anchor
    assert all(bool(saved[name].any()) for name in ("markov_head.markov_w2.weight", "confidence_head.proj.bias"))


def test_a_run_without_confidence_head_continues_exactly(tmp_path: Path) -> None:
    settings = {"min_learning_rate_ratio": 1.0, "warmup_ratio": 0.0, "draft": {"enable_confidence_head": False}}
    train_from(recipe(tmp_path / "straight", **settings, max_steps=4), spare_source())
    for limit in (2, 4):
        train_from(recipe(tmp_path / "parts", **settings, max_steps=limit), spare_source())
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    assert not any("confidence" in name for name in load_file(tmp_path / "parts" / "draft" / "model.safetensors"))


@torch.no_grad()
def test_guesses_follow_the_token_before_them(tmp_path: Path) -> None:
    train_from(recipe(tmp_path, max_steps=2), spare_source())
    draft = DSparkDraftModel.from_pretrained(tmp_path / "draft").eval()
    draft.markov_head.markov_w1.weight.normal_()
    draft.markov_head.markov_w2.weight.normal_()
    steps = DsparkSteps(draft)
    drafter = ParallelDrafter(steps, BLOCK, SamplingRule())
    aux = torch.randn(2, 5, draft.config.num_aux_hidden_states, draft.config.target_hidden_size)
    verified = VerifiedSlots(
        aux=aux, last_hidden=None, next_tokens=torch.arange(10).view(2, 5), counts=torch.tensor([5, 5]), sequences=()
    )
    drafter.begin(2)
    drafter.extend(verified)
    tokens = drafter.propose(torch.Generator()).tokens
    steps.begin(2)
    plain = steps.draft_all(verified, BLOCK)
    for row in range(2):
        before = int(verified.next_tokens[row, -1])
        for depth in range(BLOCK):
            bias = draft.markov_head.markov_w2.weight @ draft.markov_head.markov_w1.weight[before]
            before = int(steps.to_target_ids((plain[row, depth] + bias).argmax()))
            assert int(tokens[row, depth]) == before
