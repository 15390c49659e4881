"""A draft that reads some of a cache's aux layers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.errors import ConfigError
from eaglepipe.recipe.family_settings import Eagle3DraftConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import train_from
from eaglepipe.training.data.aux_subset import choose_aux_layers
from eaglepipe.training.run.metrics import read_metrics
from tests.training.tiny_source import HIDDEN, NUM_AUX, TinySource, as_bytes, tiny_recipe, tiny_source


def of_the_last_layer(source: TinySource) -> TinySource:
    """The tiny source as a cache would hold it that was made with its last aux layer alone."""

    def cut(payload: Any) -> Any:
        rows = torch.from_numpy(payload.copy()).view(torch.float32).view(-1, NUM_AUX, HIDDEN)
        return as_bytes(rows[:, -1])

    samples = tuple(replace(sample, aux_payload=cut(sample.aux_payload)) for sample in source.samples)
    return replace(source, samples=samples, spec=replace(source.spec, aux_layer_ids=source.spec.aux_layer_ids[-1:]))


def recipe_reading(folder: Path, layers: tuple[int, ...] | None) -> Recipe:
    recipe = tiny_recipe(folder, max_steps=4)
    return recipe.model_copy(update={"draft": Eagle3DraftConfig(aux_layer_ids=layers, fc_norm=True)})


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
    return losses, load_file(folder / "draft" / "model.safetensors")


def test_a_draft_of_some_layers_is_that_of_a_cache_with_those_alone(tmp_path: Path) -> None:
    train_from(recipe_reading(tmp_path / "some", (5,)), tiny_source())
    train_from(recipe_reading(tmp_path / "only", None), of_the_last_layer(tiny_source()))
    (losses, weights), (expected_losses, expected) = outcome(tmp_path / "some"), outcome(tmp_path / "only")
    assert losses == expected_losses and weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert weights["model.fc.weight"].shape == (HIDDEN, HIDDEN) and "model.fc_norm.1.weight" not in weights
    config = json.loads((tmp_path / "some" / "draft" / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [5] and config["num_aux_hidden_states"] == 1
    assert config["eagle_aux_layers_are_default"] is False


@pytest.mark.parametrize("codec", ["bf16", "fp8", "int8", "int4", "rot3"])
def test_layers_are_cut_after_decoding_whatever_the_encoding(codec: str) -> None:
    source = tiny_source(1)
    whole = replace(source.spec, aux_codec=codec)
    encoded = whole.aux.encode(torch.randn(7, NUM_AUX, HIDDEN, generator=torch.Generator().manual_seed(0)))
    some = choose_aux_layers(replace(source, spec=whole), (2, 5)).spec
    assert (some.aux.row_bytes, some.aux_layer_ids) == (whole.aux.row_bytes, (2, 5))
    assert torch.equal(some.decode_aux(encoded), whole.decode_aux(encoded)[:, [0, 2]])


def test_all_layers_by_name_are_no_choice() -> None:
    source = tiny_source(1)
    assert choose_aux_layers(source, None) is choose_aux_layers(source, [2, 4, 5]) is source


@pytest.mark.parametrize("layers", [(3,), (2, 3, 5), (), (5, 2), (2, 2)])
def test_layers_that_the_cache_cannot_give_are_refused_before_a_step(layers: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"draft\.aux_layer_ids \[.*\]: the cache has the aux layers \[2, 4, 5\]"):
        train_from(recipe_reading(tmp_path / "run", layers), tiny_source())
    assert not (tmp_path / "run").exists()
