"""`--check` of block drafts: what an engine would misread in a folder in the layout of z-lab or speculators."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.export.check.check import check_draft
from eaglepipe.export.layouts import Engine
from eaglepipe.export.target_facts import TargetFacts
from eaglepipe.export.write import export_draft
from tests.drafts.block_drafts import DEPTH, ROOT

Plant = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
ALL: tuple[Engine, ...] = ("vllm", "sglang", "hf")


def nested(**fields: Any) -> Plant:
    return lambda config, tensors: config["dflash_config"].update(fields)


def top(**fields: Any) -> Plant:
    return lambda config, tensors: config.update(fields)


def windows(**fields: Any) -> Plant:
    """Both layers with a window of 4 that is causal inside a block, as vLLM and SGLang take it by default."""

    def plant(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        config["dflash_config"]["causal"] = True
        config.update(layer_types=["sliding_attention"] * 2, sliding_window=4, use_sliding_window=True)
        config.update({name: value for name, value in fields.items() if name != "causal"})
        config["dflash_config"].update({name: value for name, value in fields.items() if name == "causal"})

    return plant


FAULTS: dict[str, tuple[Plant, tuple[Engine, ...], str, str]] = {
    "no_block_size": (lambda c, t: c.pop("block_size"), ALL, "block_size", "SGLang takes 16"),
    "block_of_one": (top(block_size=1), ALL, "block_size", "2 or more"),
    "no_mask_token": (lambda c, t: c["dflash_config"].pop("mask_token_id"), ALL, "mask_token_id", "absent"),
    "mask_token_beyond": (nested(mask_token_id=48), ALL, "mask_token_id", "no id of the target's vocabulary"),
    "no_layers": (lambda c, t: (c["dflash_config"].pop("target_layer_ids"), c.pop("eagle_aux_hidden_state_layer_ids")),
                  ALL, "target_layer_ids", "no target layers"),
    "layers_that_contradict": (nested(target_layer_ids=[2, 5, 7]), ALL, "target_layer_ids", "boundaries [3, 6, 8]"),
    "layers_that_descend": (lambda c, t: (nested(target_layer_ids=[6, 4, 1])(c, t),
                                          top(eagle_aux_hidden_state_layer_ids=[7, 5, 2])(c, t)),
                            ALL, "target_layer_ids", "ascend"),
    "layers_beyond_the_target": (lambda c, t: (nested(target_layer_ids=[1, 4, 10])(c, t),
                                               top(eagle_aux_hidden_state_layer_ids=[2, 5, 11])(c, t)),
                                 ALL, "target_layer_ids", "leave the target's 10 layers"),
    "layers_as_text": (nested(target_layer_ids="1,4,6"), ALL, "target_layer_ids", "not a list"),
    "too_few_layers": (lambda c, t: (nested(target_layer_ids=[1, 4])(c, t), c.pop("eagle_aux_hidden_state_layer_ids")),
                       ALL, "fc.weight", "the config asks for [16, 32]"),
    "another_depth": (top(num_target_layers=12), ALL, "num_target_layers", "the target's config has 10"),
    "no_target_depth": (lambda c, t: c.pop("num_target_layers"), ("sglang", "hf"), "num_target_layers", "absent"),
    "final_boundary": (lambda c, t: (nested(target_layer_ids=[1, 4, 9])(c, t),
                                     top(eagle_aux_hidden_state_layer_ids=[2, 5, 10])(c, t)),
                       ("sglang", "hf"), "target_layer_ids", "captures nothing at the target's final boundary"),
    "causal_blocks": (nested(causal=True), ("vllm",), "dflash_config.causal", "every layer causal"),
    "guess_at_the_anchor": (nested(sample_from_anchor=True), ALL, "sample_from_anchor", "nothing at the anchor"),
    "llama_layers": (top(model_type="llama"), ALL, "model_type", "it must be 'qwen3'"),
    "another_class": (top(architectures=["Qwen3ForCausalLM"]), ALL, "architectures", "expects ['DFlashDraftModel']"),
    "layers_of_the_target": (top(num_hidden_layers=10), ALL, "num_hidden_layers", "target's depth"),
    "gelu": (top(hidden_act="gelu"), ALL, "hidden_act", "silu"),
    "mask_hidden": (lambda c, t: t.update(mask_hidden=torch.ones(1, 48)), ("vllm", "hf"), "mask_hidden", "assertion"),
    "prefixed": (lambda c, t: t.update({"model.norm.weight": t.pop("norm.weight")}), ("vllm", "hf"),
                 "model.norm.weight", "model.model"),
    "midlayer": (lambda c, t: t.update({n.replace("layers.0", "midlayer"): t.pop(n) for n in list(t) if "layers.0" in n
                                        }), ("sglang", "hf"), "midlayer.mlp.up_proj.weight", "layers.0"),
    "no_norm_of_the_context": (lambda c, t: t.pop("hidden_norm.weight"), ALL, "hidden_norm.weight", ""),
    "no_norm_of_keys": (lambda c, t: t.pop("layers.1.self_attn.k_norm.weight"), ALL,
                        "layers.1.self_attn.k_norm.weight", ""),
    "norm_of_zeros": (lambda c, t: t["layers.0.input_layernorm.weight"].zero_(), ALL, "layers.0.input_layernorm.weight",
                      "nothing comes out"),
    "vocabulary": (lambda c, t: (top(draft_vocab_size=24)(c, t), t.update(
        {"lm_head.weight": torch.ones(24, 16), "d2t": torch.zeros(24, dtype=torch.int64)})),
        ("sglang", "hf"), "draft_vocab_size", "no draft vocabulary (d2t)"),
    "vocabulary_without_head": (lambda c, t: (top(draft_vocab_size=24)(c, t), t.update(
        {"d2t": torch.zeros(24, dtype=torch.int64)})), ("vllm",), "lm_head.weight", ""),
    "vocabulary_without_map": (lambda c, t: (top(draft_vocab_size=24)(c, t), t.update(
        {"lm_head.weight": torch.ones(24, 16)})), ("vllm",), "d2t", "draft id i is taken for target id i"),
    "another_width": (top(target_hidden_size=8), ("sglang", "hf"), "target_hidden_size", "of another width"),
    "window_dropped": (windows(use_sliding_window=False), ALL, "sliding_window", "use_sliding_window"),
    "types_of_the_target": (windows(layer_types=["sliding_attention"] * 10), ALL, "layer_types", "10 entries"),
    "whole_windows": (windows(causal=False), ("sglang", "hf"), "sliding_window", "reads a block up to the slot alone"),
}  # fmt: skip
FITS: dict[str, tuple[Plant, tuple[Engine, ...]]] = {
    "as_zlab_publishes_it": (lambda c, t: (c.pop("eagle_aux_hidden_state_layer_ids"), c.pop("draft_vocab_size"),
                                           c["dflash_config"].pop("causal")), ("vllm", "sglang")),
    "block_size_in_dflash_config": (lambda c, t: nested(block_size=c.pop("block_size"))(c, t), ALL),
    "causal_windows": (windows(), ALL),
    "causal_windows_by_default": (lambda c, t: (windows()(c, t), c["dflash_config"].pop("causal")), ALL),
    "whole_windows": (windows(causal=False), ("vllm",)),
    "the_targets_own_embeddings": (lambda c, t: t.update(
        {"embed_tokens.weight": torch.ones(48, 16), "lm_head.weight": torch.ones(48, 16)}), ("vllm", "sglang")),
    "one_spelling_of_rope": (lambda c, t: (c.pop("rope_theta"), c.pop("rope_scaling")), ("vllm", "sglang")),
    "biases_of_attention": (lambda c, t: (top(attention_bias=True)(c, t), t.update(
        {n.replace("weight", "bias"): torch.ones(len(w)) for n, w in list(t.items()) if "_proj" in n and "attn" in n})),
        ALL),
}  # fmt: skip
TARGET = TargetFacts(depth=DEPTH, vocab_size=48, hidden_size=16, model_type="llama")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole draft in the layout of z-lab, with everything that readers look for."""
    root = tmp_path_factory.mktemp("published")
    (root / "target").mkdir()
    (root / "target" / "config.json").write_text(json.dumps({"num_hidden_layers": DEPTH, "model_type": "llama"}))
    return export_draft(ROOT / "dflash", "hf", out=root / "draft", target=root / "target", dtype="float32").folder


def planted(source: Path, folder: Path, plant: Plant) -> Path:
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    plant(config, tensors)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_an_error_by_the_name_of_its_field(name: str, published: Path, tmp_path: Path) -> None:
    plant, engines, field, words = FAULTS[name]
    folder = planted(published, tmp_path / "draft", plant)
    for engine in engines:
        report = check_draft(folder, engine, TARGET)
        assert any(finding.name == field and words in finding.message for finding in report.errors), report.table()


@pytest.mark.parametrize("name", FITS)
def test_drafts_that_engines_serve_fit(name: str, published: Path, tmp_path: Path) -> None:
    plant, engines = FITS[name]
    folder = planted(published, tmp_path / "draft", plant)
    for engine in engines:
        report = check_draft(folder, engine, TARGET)
        assert report.ok, report.table()


def test_faults_of_one_engine_are_none_of_the_others(published: Path, tmp_path: Path) -> None:
    folder = planted(published, tmp_path / "draft", FAULTS["whole_windows"][0])
    assert check_draft(folder, "vllm", TARGET).ok and not check_draft(folder, "sglang", TARGET).ok


@pytest.mark.parametrize(("outputs", "looks"), [([2, 5, 8], "look like boundaries"), ([1, 4, 7], None)])
def test_layers_one_off_the_published_ones_are_suspected(
    outputs: list[int], looks: str | None, published: Path, tmp_path: Path
) -> None:
    """A config alone cannot tell them from other layers, so this is a warning, and only with the target's depth."""
    fields = {"eagle_aux_hidden_state_layer_ids": [output + 1 for output in outputs]}
    plant: Plant = lambda c, t: (nested(target_layer_ids=outputs)(c, t), top(**fields)(c, t))  # noqa: E731
    report = check_draft(planted(published, tmp_path / "draft", plant), "vllm", TARGET)
    assert report.ok
    assert any(looks in f.message for f in report.findings) if looks else "look like" not in report.table()


def test_speculators_causality_is_vllms_trap(tmp_path: Path) -> None:
    """vLLM takes `sliding_window_non_causal: false`, which speculators always writes, for causality of every layer."""
    folder = planted(ROOT / "dflash", tmp_path / "draft", lambda c, t: None)
    (found,) = check_draft(folder, "vllm").errors
    assert found.name == "sliding_window_non_causal" and "every layer causal" in found.message
    assert check_draft(folder, "speculators").ok
    mended = planted(ROOT / "dflash", tmp_path / "mended", top(sliding_window_non_causal=True))
    assert check_draft(mended, "vllm").ok and check_draft(mended, "speculators").ok


@pytest.mark.parametrize("field", ["block_size", "mask_token_id", "sample_from_anchor", "aux_hidden_state_layer_ids"])
def test_speculators_format_needs_its_fields(field: str, tmp_path: Path) -> None:
    folder = planted(ROOT / "dflash", tmp_path / "draft", lambda c, t: c.pop(field))
    assert not check_draft(folder, "speculators").ok


def test_embedding_of_the_mask_beside_the_weights_is_named(published: Path, tmp_path: Path) -> None:
    folder = planted(published, tmp_path / "draft", lambda c, t: None)
    torch.save(torch.zeros(16), folder / "mask_embedding.pt")
    assert "mask_embedding.pt" in {finding.name for finding in check_draft(folder, "vllm").errors}
