"""A folder that holds an adapter is no target: with and without `peft` it would be two models."""

import json
from pathlib import Path

import pytest

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.load import find_local_weights, resolve_folder
from tests.target.tiny_targets import CONFIGS, save_target


def refusal(folder: Path, **settings: bool) -> str:
    with pytest.raises(TargetError) as error:
        resolve_folder(TargetConfig(path=str(folder)), **settings)
    return str(error.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("weights", [True, False])
def test_adapter_beside_the_weights_is_refused_with_the_commands_that_merge_it(
    tmp_path: Path, name: str, weights: bool
) -> None:
    folder = save_target(CONFIGS["qwen3"], tmp_path / "target")
    assert resolve_folder(TargetConfig(path=str(folder)), weights=weights) == folder
    (folder / name).write_text("{}")
    message = refusal(folder, weights=weights)
    assert name in message and "merge_and_unload" in message and str(folder) in message
    with pytest.raises(TargetError, match="adapter"):
        find_local_weights(TargetConfig(path=str(folder)))


def test_folder_of_an_adapter_alone_names_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base-8b"}))
    assert "org/base-8b" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"base_model_name_or_path": 3}', ""])
def test_adapter_with_a_broken_config_is_refused_all_the_same(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    assert "an adapter and not a model" in refusal(tmp_path)
