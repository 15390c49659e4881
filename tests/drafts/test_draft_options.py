"""Runs whose draft has the norms and windows of other trainers' drafts: trained, published, and initialised from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.cache.storage import find_cache
from eaglepipe.errors import ConfigError
from eaglepipe.export.write import export_draft
from eaglepipe.train import run_training
from tests.drafts.speculators_drafts import initialised, logits_of, recorded
from tests.export.made_drafts import save_draft
from tests.tiny_project import TinyProject

OPTIONS = {"norm_before_fc": True, "norm_before_residual": True, "qk_norm": True, "sliding_window": 40}


def test_run_with_every_option_is_trained_published_and_goes_on(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    settings = {
        "cache.root": sealed_cache.parent, "train.max_steps": 2, "train.eval_every_steps": 1,
        **{f"draft.{name}": json.dumps(value) for name, value in OPTIONS.items()},
    }  # fmt: skip
    recipe = project.recipe(**settings, **{"train.output_dir": tmp_path / "first"})
    caches = [find_cache(recipe)]
    first = run_training(recipe, caches)
    published = export_draft(tmp_path / "first", "vllm", dtype="float32").folder
    names = load_file(published / "model.safetensors").keys()
    assert {"input_norm.weight", "midlayer.self_attn.q_norm.weight", "midlayer.self_attn.k_norm.weight"} <= names
    second = project.recipe(**settings, **{"train.output_dir": tmp_path / "second", "draft.init": published})
    assert run_training(second, caches).heldout_loss_start == pytest.approx(first.heldout_loss_end, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_before_fc": "true", "fc_norm": "true"}, "exclude each other"),
        ({"full_attention_layers": "[0]"}, "set sliding_window too"),
        ({"full_attention_layers": "[1]", "sliding_window": "8"}, "layers 0 to 0, not 1"),
    ],
)
def test_options_that_contradict_each_other_are_named(
    project: TinyProject, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        project.recipe(**{f"draft.{name}": value for name, value in settings.items()})


def test_published_folder_of_a_run_gives_back_windows_and_norms(tmp_path: Path) -> None:
    draft = initialised("three_layers")
    again = initialised("three_layers", folder=save_draft(draft, tmp_path / "draft"))
    io = recorded("three_layers")
    assert torch.equal(logits_of(again, io), logits_of(draft, io))
