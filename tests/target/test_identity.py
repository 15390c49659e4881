"""Targets that compute different states have different fields; files about other things leave them alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.identity import target_fields
from eaglepipe.target.load import load_target, read_model_config
from tests.target.tiny_targets import CONFIGS, save_target

CODE = "from transformers import Qwen3ForCausalLM\n\n\nclass Own(Qwen3ForCausalLM):\n    pass\n"
AUTO_MAP = {"AutoModelForCausalLM": "modeling_own.Own"}


def edited(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    file = folder / name
    fields = json.loads(file.read_text()) if file.exists() else {}
    change(fields)
    file.write_text(json.dumps(fields))


def fields_of(folder: Path, **settings: Any) -> dict[str, Any]:
    target = TargetConfig(path=str(folder), **settings)
    return target_fields(folder, read_model_config(folder, target), target, weights=weights_fingerprint(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_target(CONFIGS["qwen3"], tmp_path / "qwen3")


@pytest.fixture
def several_parts(tmp_path: Path) -> Path:
    return save_target(CONFIGS["gemma3"], tmp_path / "gemma3")


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "relu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"use_sliding_window": True, "sliding_window": 8},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"dtype": "float16"},
    ],
)
def test_config_fields_that_change_states_count(folder: Path, change: dict[str, Any]) -> None:
    before = fields_of(folder)
    edited(folder, lambda config: config.update(change))
    assert fields_of(folder) != before


@pytest.mark.parametrize("has_amx", [True, False])
def test_no_processor_decides_the_dtype(folder: Path, monkeypatch: pytest.MonkeyPatch, has_amx: bool) -> None:
    """Workers of two kinds write the shards of one cache, and a finished one is found on any machine."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert fields_of(folder)["dtype"] == json.loads((folder / "config.json").read_text())["dtype"]


def test_fields_and_files_that_change_no_state_do_not_count(folder: Path) -> None:
    before = fields_of(folder)
    assert before.keys() == {"config", "weights", "revision", "dtype"}
    edited(folder, lambda config: config.update(use_cache=False, transformers_version="9.9", auto_map=AUTO_MAP))
    edited(folder, lambda fields: fields.update(eos_token_id=9), "generation_config.json")
    (folder / "modeling_own.py").write_text(CODE)
    (folder / "README.md").write_text("A target.")
    assert fields_of(folder) == before  # code that is not trusted never runs


def test_trusted_code_counts_byte_by_byte(folder: Path, tmp_path: Path) -> None:
    before = fields_of(folder)
    (folder / "notes.py").write_text("")
    assert fields_of(folder, trust_remote_code=True) == before  # no config refers to code
    edited(folder, lambda config: config.update(auto_map=AUTO_MAP))
    seen = {fields_of(folder, trust_remote_code=True)["code"]}
    for name, text in (("modeling_own.py", CODE), ("modeling_own.py", CODE + "\n"), ("helpers.py", "X = 1\n")):
        (folder / name).write_text(text)
        seen.add(fields_of(folder, trust_remote_code=True)["code"])
    edited(folder, lambda config: config.update(auto_map={"AutoModelForCausalLM": f"{tmp_path / 'other'}--own.Own"}))
    for text in (CODE, CODE + "\n"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "own.py").write_text(text)
        seen.add(fields_of(folder, trust_remote_code=True)["code"])
    assert len(seen) == 6 and None not in seen


def test_code_of_the_tokenizer_counts(folder: Path) -> None:
    edited(folder, lambda fields: fields.update(auto_map={"AutoTokenizer": ["own.Own", None]}), "tokenizer_config.json")
    (folder / "own.py").write_text("A = 1\n")
    before = fields_of(folder, trust_remote_code=True)
    (folder / "own.py").write_text("A = 2\n")
    assert fields_of(folder, trust_remote_code=True)["code"] != before["code"]
    assert fields_of(folder, trust_remote_code=False).keys() == {"config", "weights", "revision", "dtype"}


def test_code_in_a_repository_that_is_not_to_be_had_is_refused(folder: Path) -> None:
    edited(folder, lambda config: config.update(auto_map={"AutoModelForCausalLM": "org/gone--own.Own"}))
    with pytest.raises(TargetError, match="org/gone"):
        fields_of(folder, trust_remote_code=True)


@pytest.mark.parametrize("outer", [None, "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("inner", [None, "float16"])
def test_dtype_is_that_of_the_loaded_model(several_parts: Path, outer: str | None, inner: str | None) -> None:
    edited(several_parts, lambda config: (config.update(dtype=outer), config["text_config"].update(dtype=inner)))
    model = load_target(TargetConfig(path=str(several_parts)), "cpu").model
    assert fields_of(several_parts)["dtype"] == str(model.dtype).removeprefix("torch.")


def test_dtype_follows_the_weights_of_a_config_without_one(folder: Path) -> None:
    edited(folder, lambda config: config.pop("dtype"))
    assert fields_of(folder)["dtype"] == "float32"
    file = folder / "model.safetensors"
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(halved, file, metadata={"format": "pt"})
    assert fields_of(folder)["dtype"] == "bfloat16"
    assert load_target(TargetConfig(path=str(folder)), "cpu").model.dtype == torch.bfloat16


def test_quantisation_of_a_target_of_several_parts_counts(several_parts: Path) -> None:
    seen = [fields_of(several_parts)]
    for bits in (4, 8):
        edited(several_parts, lambda config, bits=bits: config.update(quantization_config={"bits": bits}))
        seen.append(fields_of(several_parts))
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_weights_under_another_name_are_refused(folder: Path) -> None:
    edited(folder, lambda config: config.update(transformers_weights="other.safetensors"))
    with pytest.raises(TargetError, match=r"other\.safetensors"):
        fields_of(folder)


def test_the_engine_counts_and_how_it_runs_does_not(folder: Path) -> None:
    plain = fields_of(folder)
    served = fields_of(folder, engine="vllm")
    assert "engine" not in plain
    assert served != plain
    running = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "max_num_seqs": 8}
    assert fields_of(folder, engine="vllm", engine_args=running) == served
    for changing in ({"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}, {"max_model_len": 64}, {"unheard_of": 1}):
        assert fields_of(folder, engine="vllm", engine_args=running | changing) != served
