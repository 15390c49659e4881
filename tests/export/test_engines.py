"""An exported draft, loaded as an engine loads it, gives the logits of the trained module."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, PreTrainedModel

from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.target_facts import read_target_facts
from eaglepipe.export.write import export_draft
from tests.export.engine_forward import chain
from tests.export.engine_loaders import Served, load_as
from tests.export.made_drafts import DEPTH, GPT_OSS, LLAMA, VOCAB, MadeTarget, make_draft, save_draft

STEPS, SLOTS = 4, 7
CASES: dict[str, tuple[MadeTarget, dict[str, Any]]] = {
    "eagle3": (MadeTarget(), {}),
    "eagle3.1": (MadeTarget(), {"fc_norm": True, "norm_output": True}),
    "whole vocabulary": (MadeTarget(draft_size=VOCAB), {}),
    "custom layers": (MadeTarget(aux_layer_ids=(1, 4, 6, 9)), {"fc_norm": True}),
    "heads that do not split H": (MadeTarget(), {"head_dim": 6, "num_attention_heads": 4}),
    "several layers": (MadeTarget(), {"num_hidden_layers": 3}),
    "another width": (MadeTarget(), {"hidden_size": 24, "freeze_embeddings": False, "lm_head_init": "random"}),
    "gpt-oss": (MadeTarget(target_config=GPT_OSS), {}),
}
READERS = {"vllm": ["vllm"], "sglang": ["sglang"], "speculators": ["speculators"], "hf": ["vllm", "sglang"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, Path]]:
    made = {}
    for name, (target, settings) in CASES.items():
        draft = make_draft(target, **settings)
        made[name] = (draft, save_draft(draft, tmp_path_factory.mktemp("draft") / "draft"))
    return made


@torch.no_grad()
def module_logits(draft: PreTrainedModel, ids: torch.Tensor, aux: torch.Tensor) -> list[torch.Tensor]:
    """Logits [T, D] of each TTT step of the module that was trained."""
    state, ids, logits = draft.project_hidden_states(aux[None]), ids[None], []
    cache: list[list[torch.Tensor]] = [[] for _ in range(2 * draft.config.num_hidden_layers)]
    for _ in range(STEPS):
        state = draft(ids, state, None, None, cache)
        logits.append(draft.compute_logits(state)[0])
        ids = torch.cat([ids[:, 1:], torch.zeros(1, 1, dtype=ids.dtype)], dim=1)
    return logits


def states_of(target: MadeTarget) -> list[torch.Tensor]:
    """What the target's boundaries hold, [T, Ht] each, all different: a wrong layer changes the logits."""
    generator = torch.Generator().manual_seed(8)
    width = target.target_config["hidden_size"]
    return [torch.randn(SLOTS, width, generator=generator) for _ in range(DEPTH + 1)]


def assert_same_logits(served: Served, draft: PreTrainedModel, target: MadeTarget) -> None:
    states, ids = states_of(target), torch.randint(VOCAB, (SLOTS,), generator=torch.Generator().manual_seed(9))
    reference = module_logits(draft, ids, torch.cat([states[b] for b in target.aux_layer_ids], dim=-1))
    for actual, expected in zip(chain(served, ids, states, STEPS), reference, strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(served.target_ids, target.selected_token_ids)


@pytest.mark.parametrize("engine", READERS)
@pytest.mark.parametrize("case", CASES)
def test_logits_in_the_engine_are_those_of_the_trained_module(
    case: str, engine: str, trained: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    (target, _), (draft, folder) = CASES[case], trained[case]
    if (case, engine) == ("another width", "speculators"):
        with pytest.raises(DraftError, match="speculators loads no draft of hidden size 24 for a target of 16"):
            export_draft(folder, "speculators")
        return
    result = export_draft(folder, engine, out=tmp_path / "out", dtype="float32")  # type: ignore[arg-type]
    for reader in READERS[engine]:
        served = load_as(
            reader,
            result.folder,
            depth=DEPTH,
            target_embeddings=target.embeddings,
            gpt_oss=target.target_config["model_type"] == "gpt_oss",
        )
        assert_same_logits(served, draft, target)
    sizes = json.dumps(target.target_config)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(sizes)
    facts = read_target_facts(tmp_path / "target")
    assert check_draft(result.folder, engine, facts).errors == ()  # type: ignore[arg-type]


def test_final_boundary_of_gpt_oss_is_written_once_for_both_engines(tmp_path: Path) -> None:
    target = MadeTarget(target_config=GPT_OSS, aux_layer_ids=(6, 8, 10))
    draft = make_draft(target)
    folder = save_draft(draft, tmp_path / "draft")
    out = export_draft(folder, "hf", dtype="float32", out=tmp_path / "out").folder
    for reader in ("vllm", "sglang"):
        served = load_as(reader, out, depth=DEPTH, target_embeddings=target.embeddings, gpt_oss=True)
        assert_same_logits(served, draft, target)


def test_default_layers_are_written_by_no_id_and_custom_ones_in_both_spellings(
    trained: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    default = json.loads(
        (export_draft(trained["eagle3"][1], "vllm", out=tmp_path / "a").folder / "config.json").read_text()
    )
    custom = json.loads(
        (export_draft(trained["custom layers"][1], "vllm", out=tmp_path / "b").folder / "config.json").read_text()
    )
    assert "eagle_aux_hidden_state_layer_ids" not in default and "eagle_config" not in default
    assert custom["eagle_aux_hidden_state_layer_ids"] == [1, 4, 6, 9] and custom["num_aux_hidden_states"] == 4
    assert custom["eagle_config"] == {"eagle_aux_hidden_state_layer_ids": [0, 3, 5, 8], "use_aux_hidden_state": True}


def test_config_holds_the_contracts_fields_and_no_others(
    trained: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    config = json.loads(
        (export_draft(trained["gpt-oss"][1], "hf", out=tmp_path / "out").folder / "config.json").read_text()
    )
    assert set(config) == {
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "num_hidden_layers", "vocab_size", "draft_vocab_size", "hidden_act", "rms_norm_eps",
        "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias",
        "num_aux_hidden_states", "norm_before_residual", "norm_before_fc", "fc_norm",
        "tie_word_embeddings", "torch_dtype", "dtype", "bos_token_id", "eos_token_id", "pad_token_id",
    }  # fmt: skip
    assert LlamaConfig(**config).rope_parameters == GPT_OSS["rope_parameters"]


@pytest.mark.parametrize(("engine", "first"), [("vllm", "midlayer"), ("speculators", "layers.0")])
def test_stored_tensors_have_the_contracts_names_shapes_and_kinds(
    engine: str, first: str, trained: dict[str, tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    result = export_draft(trained["eagle3"][1], engine, out=tmp_path / "out")  # type: ignore[arg-type]
    stored = load_file(result.folder / "model.safetensors")
    layer = {
        "hidden_norm": (16,), "input_layernorm": (16,), "post_attention_layernorm": (16,), "self_attn.q_proj": (16, 32),
        "self_attn.k_proj": (8, 32), "self_attn.v_proj": (8, 32), "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
    }  # fmt: skip
    expected = {f"{first}.{name}.weight": shape for name, shape in layer.items()}
    expected |= {"fc.weight": (16, 48), "norm.weight": (16,), "lm_head.weight": (40, 16), "d2t": (40,), "t2d": (VOCAB,)}
    expected |= {"embed_tokens.weight": (VOCAB, 16)}
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == expected
    assert stored["d2t"].dtype == torch.int64 and stored["t2d"].dtype == torch.bool
    others = {tensor.dtype for name, tensor in stored.items() if name not in ("d2t", "t2d")}
    assert others == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_embeddings": False}, "trained its own"),
    ],
)
def test_what_sglang_would_serve_wrongly_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_draft(make_draft(MadeTarget(), **settings), run / "draft")
    (run / "recipe.yaml").write_text(
        "name: x\ntarget: {path: org/target}\ndata: {sources: [{path: a.jsonl}]}\ndraft: {freeze_embeddings: false}\n"
    )
    with pytest.raises(DraftError, match=message):
        export_draft(run, "sglang")
    assert not (run / "export").exists()
    assert export_draft(run, "vllm").folder == run / "export" / "vllm"


def test_biases_in_attention_reach_vllm_and_are_refused_for_sglang(tmp_path: Path) -> None:
    target = MadeTarget(target_config={**LLAMA, "attention_bias": True})
    draft = make_draft(target)
    folder = save_draft(draft, tmp_path / "draft")
    out = export_draft(folder, "vllm", dtype="float32", out=tmp_path / "out").folder
    assert_same_logits(load_as("vllm", out, depth=DEPTH, target_embeddings=target.embeddings), draft, target)
    with pytest.raises(DraftError, match="attention_bias"):
        export_draft(folder, "sglang")
