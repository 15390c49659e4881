"""An exported EAGLE-1/2 draft, loaded as an engine loads it, gives the logits of the trained module."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from eaglepipe.drafts.init_from import init_from
from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.write import export_draft
from tests.export.engine_forward import chain_of_features
from tests.export.engine_loaders import load_features_draft
from tests.export.made_drafts import HIDDEN, VOCAB, MadeTarget, make_draft, save_draft, without_digests

STEPS, SLOTS = 4, 6
TARGET = MadeTarget(draft_size=VOCAB)


@pytest.fixture(params=[1, 2], ids=["one layer", "two layers"])
def draft(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Small weights: features are not normed between steps, and growing ones would leave float32 too few digits."""
    return make_draft(TARGET, "eagle1", scale=0.15, num_hidden_layers=request.param)


@torch.no_grad()
def module_logits(draft: PreTrainedModel, ids: torch.Tensor, features: torch.Tensor) -> list[torch.Tensor]:
    """[SLOTS, V] at each depth of the chains that the trained module drafts, through the target's lm_head."""
    readable = torch.ones(SLOTS, SLOTS, dtype=torch.bool).tril()[None, None]
    chains: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in draft.layers]
    ids, features, logits = ids[None], features[None], []
    for _ in range(STEPS):
        features = draft.forward_chain(ids, features, readable, torch.arange(SLOTS)[None], chains)
        logits.append(features[0] @ TARGET.head.T)
        ids = torch.cat([ids[:, 1:], torch.zeros(1, 1, dtype=ids.dtype)], dim=1)
    return logits


@pytest.mark.parametrize(
    ("engine", "readers"), [("vllm", ["vllm"]), ("sglang", ["sglang"]), ("hf", ["vllm", "sglang"])]
)
def test_logits_in_the_engine_are_those_of_the_trained_module(
    draft: PreTrainedModel, engine: str, readers: list[str], tmp_path: Path
) -> None:
    out = export_draft(save_draft(draft, tmp_path / "draft"), engine, dtype="float32").folder  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(VOCAB, (SLOTS,), generator=generator)
    features = torch.randn(SLOTS, HIDDEN, generator=generator)
    expected = module_logits(draft, ids, features)
    for reader in readers:
        served = load_features_draft(reader, out, target_embeddings=TARGET.embeddings)
        for actual, logits in zip(chain_of_features(served, ids, features, TARGET.head, STEPS), expected, strict=True):
            torch.testing.assert_close(actual, logits, atol=1e-5, rtol=1e-5)
    assert check_draft(out, engine).ok  # type: ignore[arg-type]


def test_keys_are_the_contracts_and_only_sglang_gets_a_bias(tmp_path: Path) -> None:
    folder = save_draft(make_draft(TARGET, "eagle1"), tmp_path / "draft")
    layer = [
        "post_attention_layernorm",
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    keys = {"fc.weight", "embed_tokens.weight", *(f"layers.0.{name}.weight" for name in layer)}
    for engine, names, architecture in (
        ("vllm", keys, "LlamaForCausalLM"),
        ("sglang", keys - {"embed_tokens.weight"} | {"fc.bias"}, "LlamaForCausalLMEagle"),
    ):
        out = export_draft(folder, engine).folder  # type: ignore[arg-type]
        stored = load_file(out / "model.safetensors")
        assert stored.keys() == names
        assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]
    assert not stored["fc.bias"].any()


def test_speculators_has_no_such_drafts(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="no EAGLE-1/2"):
        export_draft(save_draft(make_draft(TARGET, "eagle1"), tmp_path / "draft"), "speculators")


@pytest.mark.parametrize("name", ["layers.0.input_layernorm.weight", "norm.weight", "fc.bias"])
def test_what_vllm_stops_at_or_ignores_is_found(name: str, tmp_path: Path) -> None:
    out = without_digests(export_draft(save_draft(make_draft(TARGET, "eagle1"), tmp_path / "draft"), "vllm").folder)
    tensors = load_file(out / "model.safetensors")
    save_file({**tensors, name: torch.ones(HIDDEN)}, out / "model.safetensors")
    assert [finding.name for finding in check_draft(out, "vllm").errors] == [name]


def test_training_is_initialised_from_a_published_one(tmp_path: Path) -> None:
    draft = make_draft(TARGET, "eagle1")
    published = export_draft(save_draft(draft, tmp_path / "draft"), "sglang", dtype="float32").folder
    fresh = make_draft(TARGET, "eagle1", num_hidden_layers=1)
    with torch.no_grad():
        fresh.fc.weight.zero_()
    init_from(fresh, published)
    assert all(torch.equal(tensor, draft.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    with pytest.raises(DraftError, match="EAGLE-1/2 draft cannot initialise an EAGLE-3"):
        init_from(make_draft(TARGET), published)
