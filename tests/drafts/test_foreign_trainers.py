"""Folders in the layouts of SpecForge and NeMo: equal to a forward written here, converted, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.drafts.folder import read_draft_folder
from eaglepipe.drafts.init_from import init_from
from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.write import export_draft
from tests.export.engine_forward import attend, chain, mlp, rms_norm
from tests.export.engine_loaders import Served
from tests.export.made_drafts import DEPTH, HIDDEN, LLAMA, VOCAB, MadeTarget, make_draft

AUX = "eagle_aux_hidden_state_layer_ids"
SLOTS = 9
SAVED_BY_TRANSFORMERS = {
    "attention_bias": False, "attention_dropout": 0.0, "head_dim": 4, "hidden_act": "silu", "hidden_size": HIDDEN,
    "initializer_range": 0.02, "intermediate_size": 24, "max_position_embeddings": 128, "mlp_bias": False,
    "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "tie_word_embeddings": False,
    "transformers_version": "5.3.0", "use_cache": True, "vocab_size": VOCAB, "dtype": "float32",
}  # fmt: skip


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    draw = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 1 + 0.3 * noise if "norm" in name else 0.3 * noise for name, noise in draw.items()}


def layer(name: str, inputs: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.self_attn.q_proj.weight": (16, inputs), f"{name}.self_attn.k_proj.weight": (8, inputs),
        f"{name}.self_attn.v_proj.weight": (8, inputs), f"{name}.self_attn.o_proj.weight": (HIDDEN, 16),
        f"{name}.mlp.gate_proj.weight": (24, HIDDEN), f"{name}.mlp.up_proj.weight": (24, HIDDEN),
        f"{name}.mlp.down_proj.weight": (HIDDEN, 24), f"{name}.input_layernorm.weight": (HIDDEN,),
        f"{name}.post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip


def saved(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def specforge(
    folder: Path, *, size: int = VOCAB, ids: tuple[int, ...] | None = (1, 3, 4), **fields: Any
) -> tuple[Path, Served]:
    """A draft as SpecForge saves it: midlayer, both maps always, no embeddings, layer outputs in eagle_config alone."""
    shapes = {
        "fc.weight": (HIDDEN, 3 * HIDDEN), "midlayer.hidden_norm.weight": (HIDDEN,), "norm.weight": (HIDDEN,),
        "lm_head.weight": (size, HIDDEN), **layer("midlayer", 2 * HIDDEN),
    }  # fmt: skip
    tensors = random_tensors(shapes)
    chosen = MadeTarget(draft_size=size).selected_token_ids
    tensors["d2t"] = chosen - torch.arange(size)
    tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, chosen, True)
    config = {
        **SAVED_BY_TRANSFORMERS, "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama",
        "pretraining_tp": 1, "draft_vocab_size": size, **fields,
    }  # fmt: skip
    if ids is not None:
        config["eagle_config"] = {AUX: list(ids), "use_aux_hidden_state": True}
    weights = {name.replace("midlayer", "layers.0"): tensor for name, tensor in tensors.items()}
    served = Served(
        weights={**weights, "embed_tokens.weight": MadeTarget().embeddings},
        sizes=config,
        rope=config["rope_parameters"],
        boundaries=tuple(output + 1 for output in ids or (1, 4, 6)),
        fc_norm=False,
        norm_output=False,
        deeper_norm="",
        target_ids=chosen,
    )
    return saved(folder, config, tensors), served


@torch.no_grad()
def assert_same_chain(draft: Any, served: Served) -> None:
    generator = torch.Generator().manual_seed(8)
    states = [torch.randn(SLOTS, HIDDEN, generator=generator) for _ in range(DEPTH + 1)]
    ids = torch.randint(VOCAB, (SLOTS,), generator=generator)
    expected = chain(served, ids, states, 3)
    state = draft.project_hidden_states(torch.cat([states[b] for b in served.boundaries], dim=-1)[None])
    cache: list[list[torch.Tensor]] = []
    for logits in expected:
        state = draft(ids[None], state, cache_hidden=cache)
        torch.testing.assert_close(draft.compute_logits(state)[0], logits, rtol=1e-5, atol=1e-5)
        ids = torch.cat([ids[1:], torch.zeros(1, dtype=ids.dtype)])


@pytest.mark.parametrize("size", [VOCAB, 40])
def test_specforge_draft_comes_in_with_its_layer_outputs(size: int, tmp_path: Path) -> None:
    folder, served = specforge(tmp_path / "draft", size=size)
    draft = make_draft(MadeTarget(aux_layer_ids=(2, 4, 5), draft_size=size))
    (note,) = init_from(draft, folder)
    assert "embed_tokens.weight as newly built" in note
    assert_same_chain(draft, served)
    with pytest.raises(DraftError, match=r"\[2, 4, 5\]"):
        init_from(make_draft(MadeTarget(aux_layer_ids=(2, 4, 6), draft_size=size)), folder)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_specforge_draft_is_converted_for_engines_that_share_embeddings(engine: Any, tmp_path: Path) -> None:
    folder, served = specforge(tmp_path / "draft")
    out = export_draft(folder, engine, dtype="float32").folder
    config = json.loads((out / "config.json").read_text())
    assert config[AUX] == [2, 4, 5] and config["eagle_config"][AUX] == [1, 3, 4]
    assert check_draft(out, engine).ok and not {"d2t", "t2d"} & load_file(out / "model.safetensors").keys()
    draft = make_draft(MadeTarget(aux_layer_ids=(2, 4, 5), draft_size=VOCAB))
    init_from(draft, out)
    assert_same_chain(draft, served)


def test_embeddings_that_a_layout_holds_are_taken_from_the_target(tmp_path: Path) -> None:
    folder, _ = specforge(tmp_path / "draft")
    with pytest.raises(DraftError, match="give the target's as --target") as refusal:
        export_draft(folder, "speculators")
    assert "\n" not in str(refusal.value)
    model = LlamaForCausalLM(LlamaConfig(**{name: value for name, value in LLAMA.items() if name != "model_type"}))
    model.save_pretrained(tmp_path / "target", max_shard_size="20KB")
    for engine in ("speculators", "hf"):
        out = export_draft(folder, engine, dtype="float32", target=tmp_path / "target").folder  # type: ignore[arg-type]
        stored = load_file(out / "model.safetensors")["embed_tokens.weight"]
        assert torch.equal(stored, model.model.embed_tokens.weight)
        assert check_draft(out, engine).ok  # type: ignore[arg-type]
    other = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "hidden_size": 32, "model_type": "llama"}))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(DraftError, match=r"no token embeddings of \[64, 16\], as the draft needs; it has .*\[64, 32\]"):
        export_draft(folder, "hf", target=tmp_path / "other", out=tmp_path / "none")


def test_target_tells_trained_embeddings_from_shared_ones(tmp_path: Path) -> None:
    folder, _ = specforge(tmp_path / "draft")
    model = LlamaForCausalLM(LlamaConfig(**{name: value for name, value in LLAMA.items() if name != "model_type"}))
    model.save_pretrained(tmp_path / "target")
    whole = export_draft(folder, "hf", dtype="float32", target=tmp_path / "target", out=tmp_path / "whole").folder
    (whole / "eaglepipe_digests.json").unlink()
    unknown = export_draft(whole, "sglang", out=tmp_path / "unknown")
    assert any("whether these were trained is not known" in finding.line() for finding in unknown.warnings)
    known = export_draft(whole, "sglang", out=tmp_path / "known", target=tmp_path / "target")
    assert not [finding for finding in known.warnings if "embed_tokens" in finding.name]
    stored = load_file(whole / "model.safetensors")
    stored["embed_tokens.weight"][3] += 1
    save_file(stored, whole / "model.safetensors")
    with pytest.raises(DraftError, match="trained its own"):
        export_draft(whole, "sglang", out=tmp_path / "refused", target=tmp_path / "target")
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({**config, "embed_requires_grad": True}))
    with pytest.raises(DraftError, match="trained its own"):
        export_draft(whole, "sglang", out=tmp_path / "refused")


def test_ids_of_unknown_meaning_are_still_refused(tmp_path: Path) -> None:
    by_hand, _ = specforge(tmp_path / "by_hand", norm_before_residual=False)
    default, _ = specforge(tmp_path / "default", ids=(2, 5, 7), target_num_hidden_layers=DEPTH)
    for folder in (by_hand, default):
        with pytest.raises(DraftError, match="may be boundaries or layer outputs"):
            export_draft(folder, "vllm")


def test_modelopt_ids_are_layer_outputs_too(tmp_path: Path) -> None:
    folder, _ = specforge(tmp_path / "draft", norm_before_residual=False)
    config = json.loads((folder / "config.json").read_text())
    config["eagle_config"] |= {"use_last_layernorm": True, "next_layer_regular": True}
    (folder / "config.json").write_text(json.dumps(config))
    out = export_draft(folder, "vllm").folder
    assert json.loads((out / "config.json").read_text())[AUX] == [2, 4, 5]


def nemo(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """An EAGLE-1 draft as NeMo saves it: a norm before the first layer's attention, and one of the output."""
    shapes = {
        "embed_tokens.weight": (VOCAB, HIDDEN), "fc.weight": (HIDDEN, 2 * HIDDEN), "norm.weight": (HIDDEN,),
        **layer("layers.0", HIDDEN),
    }  # fmt: skip
    tensors = random_tensors(shapes)
    config = {**SAVED_BY_TRANSFORMERS, "architectures": ["LlamaEagleDraftModel"], "model_type": "llama"}
    return saved(folder, config, tensors), tensors


@torch.no_grad()
def test_nemo_eagle1_draft_comes_in_with_its_norms_or_says_what_is_left_out(tmp_path: Path) -> None:
    folder, tensors = nemo(tmp_path / "draft")
    assert read_draft_folder(folder).shape.family.name == "eagle1"
    kept = make_draft(MadeTarget(draft_size=VOCAB), "eagle1", input_norm=True, final_norm=True)
    init_from(kept, folder)
    served = Served(
        weights=tensors, sizes=SAVED_BY_TRANSFORMERS, rope=SAVED_BY_TRANSFORMERS["rope_parameters"], boundaries=(),
        fc_norm=False, norm_output=False, deeper_norm="", target_ids=torch.arange(VOCAB),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    ids, features = torch.randint(VOCAB, (SLOTS,), generator=generator), torch.randn(SLOTS, HIDDEN, generator=generator)
    fused = torch.cat([tensors["embed_tokens.weight"][ids], features], dim=-1) @ tensors["fc.weight"].T
    states = fused + attend(
        served, "layers.0", rms_norm(served, fused, "layers.0.input_layernorm"), torch.arange(SLOTS), []
    )
    states = states + mlp(served, "layers.0", rms_norm(served, states, "layers.0.post_attention_layernorm"))
    expected = rms_norm(served, states, "norm")
    given = (ids[None], features[None], torch.ones(1, SLOTS))
    torch.testing.assert_close(kept(*given)[0], expected, rtol=1e-5, atol=1e-5)

    plain = make_draft(MadeTarget(draft_size=VOCAB), "eagle1")
    notes = init_from(plain, folder)
    assert "left out its input_norm and final_norm, which no engine serves" in notes[1]
    assert "draft.input_norm=true draft.final_norm=true" in notes[1]
    assert not torch.allclose(plain(*given)[0], expected, atol=1e-2)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "hf"])
def test_nemo_eagle1_draft_is_refused_with_what_serving_loses(engine: Any, tmp_path: Path) -> None:
    folder, _ = nemo(tmp_path / "draft")
    with pytest.raises(DraftError, match=r"no engine has the input_norm and final_norm.*draft\.init") as refusal:
        export_draft(folder, engine)
    assert "\n" not in str(refusal.value)
    named = {finding.name for finding in check_draft(folder, engine).errors}
    assert {"layers.0.input_layernorm.weight", "norm.weight"} <= named
