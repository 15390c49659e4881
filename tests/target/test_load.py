import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.errors import ConfigError, TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.load import check_tokenizer_fits, load_target, read_model_config, text_config_of
from tests.target.tiny_targets import CONFIGS, LAYERS, VOCAB, make_model, save_target


@pytest.fixture
def folder(tmp_path):
    return save_target(CONFIGS["qwen3"], tmp_path / "target")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local path must not touch the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(folder, **settings):
    return load_target(TargetConfig(path=str(folder), **settings), "cpu")


def test_a_loaded_target_is_frozen_in_eval_mode_and_has_every_weight(folder, no_network):
    target = load(folder)
    assert not target.model.training
    assert not any(parameter.requires_grad for parameter in target.model.parameters())
    assert (target.vocab_size, target.num_layers, target.device.type) == (VOCAB, LAYERS, "cpu")
    expected = make_model(CONFIGS["qwen3"]).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.model.state_dict().items())


def test_the_dtype_is_the_checkpoints_unless_the_recipe_names_one(tmp_path):
    make_model(CONFIGS["llama"]).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.bfloat16
    assert load(tmp_path, dtype="float32").dtype == torch.float32


def test_the_text_config_is_read_without_weights(tmp_path, no_network):
    CONFIGS["gemma3"].save_pretrained(tmp_path)
    config = text_config_of(read_model_config(tmp_path, TargetConfig(path=str(tmp_path))), str(tmp_path))
    assert (config.vocab_size, config.num_hidden_layers) == (VOCAB, LAYERS)


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/model", "a/b/c", "~/no such model"])
def test_a_missing_folder_is_named(path, no_network):
    with pytest.raises(TargetError, match="no model folder at"):
        load_target(TargetConfig(path=path), "cpu")


def test_a_folder_that_holds_no_model_and_a_file_are_named(tmp_path):
    with pytest.raises(TargetError, match=r"neither config\.json nor a GGUF file"):
        load(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(TargetError, match="neither"):
        load(tmp_path / "model.bin")


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(TargetError, match="no weights"):
        load(folder)


def test_a_tensor_missing_from_the_checkpoint_is_never_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TargetError, match=r"missing keys: model\.layers\.3\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_config_that_does_not_fit_the_weights_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(TargetError, match=r"does not fit its config: mismatched keys: "):
        load(folder)


def test_an_unknown_architecture_and_broken_json_name_the_config(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(TargetError, match=r"config\.json"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(TargetError, match=r"config\.json"):
        load(folder)


def test_code_in_a_model_folder_runs_only_when_the_recipe_says_so(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config.pop("model_type")
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(TargetError, match=r"config\.json"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_absent_is_an_error_and_auto_falls_back(folder):
    with pytest.raises(ConfigError, match="0 CUDA device"):
        load_target(TargetConfig(path=str(folder)), "cuda")
    assert load_target(TargetConfig(path=str(folder)), "auto").device.type == "cpu"


def test_a_tokenizer_larger_than_the_head_names_both_sizes():
    check_tokenizer_fits(60, 67)
    check_tokenizer_fits(67, 67)
    with pytest.raises(TargetError, match=r"68 tokens.* 67 rows"):
        check_tokenizer_fits(68, 67)
