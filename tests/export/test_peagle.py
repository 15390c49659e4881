"""An exported P-EAGLE draft, drafting in parallel as an engine does, gives the logits of the trained module."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from eaglepipe.drafts.init_from import init_from
from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.write import export_draft
from tests.export.engine_forward import layers, project, rms_norm
from tests.export.engine_loaders import Served, load_as
from tests.export.made_drafts import DEPTH, VOCAB, MadeTarget, make_draft, save_draft, without_digests

DEPTHS, SLOTS, MASK_TOKEN = 4, 6, 3
CASES: dict[str, tuple[MadeTarget, dict[str, Any]]] = {
    "one layer": (MadeTarget(), {}),
    "several layers": (MadeTarget(), {"num_hidden_layers": 3}),
    "3.1 norms": (MadeTarget(), {"fc_norm": True, "norm_output": True}),
    "custom layers": (MadeTarget(aux_layer_ids=(1, 4, 6, 10)), {}),
    "whole vocabulary": (MadeTarget(draft_size=VOCAB), {}),
    "its own embeddings": (MadeTarget(), {"freeze_embeddings": False}),
}


def make_parallel(target: MadeTarget, **settings: Any) -> PreTrainedModel:
    return make_draft(target, "peagle", **{"mask_token_id": MASK_TOKEN, **settings})


def states_of(target: MadeTarget) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(SLOTS, target.target_config["hidden_size"], generator=generator) for _ in range(DEPTH + 1)]


@torch.no_grad()
def module_logits(draft: PreTrainedModel, ids: torch.Tensor, aux: torch.Tensor) -> torch.Tensor:
    """[SLOTS, DEPTHS, D] of the module that was trained: every depth of every anchor in one pass."""
    anchors = torch.arange(SLOTS).repeat_interleave(DEPTHS)
    depths = torch.arange(DEPTHS).repeat(SLOTS)
    real = depths == 0
    tokens = torch.where(real, ids[anchors], MASK_TOKEN)
    hidden = torch.where(real[:, None], draft.project_hidden_states(aux)[anchors], draft.masked_projected_hidden())
    mask = draft.build_peagle_block_mask(anchors, depths, torch.tensor([SLOTS]), SLOTS)
    state = draft.forward_peagle(tokens[None], hidden[None], (anchors + depths)[None], mask)
    return draft.compute_logits(state)[0].unflatten(0, (SLOTS, DEPTHS))


def engine_logits(served: Served, ids: torch.Tensor, hidden_states: list[torch.Tensor]) -> torch.Tensor:
    """[SLOTS, DEPTHS, D]: after each anchor, the prompt so far and DEPTHS - 1 masked tokens in one causal pass."""
    aux = torch.cat([hidden_states[boundary] for boundary in served.boundaries], dim=-1)
    masked = served.weights["mask_hidden"].view(1, -1)
    rows = []
    for anchor in range(SLOTS):
        tokens = torch.cat([ids[: anchor + 1], torch.full((DEPTHS - 1,), served.mask_token)])
        state = project(served, torch.cat([aux[: anchor + 1], masked.expand(DEPTHS - 1, -1)]))
        seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(served.sizes["num_hidden_layers"])]
        state = layers(served, tokens, state, torch.arange(len(tokens)), seen)[anchor:]
        rows.append(rms_norm(served, state, "norm") @ served.weights["lm_head.weight"].T)
    return torch.stack(rows)


@pytest.mark.parametrize("engine", ["vllm", "speculators", "hf"])
@pytest.mark.parametrize("case", CASES)
def test_parallel_logits_in_the_engine_are_those_of_the_trained_module(case: str, engine: str, tmp_path: Path) -> None:
    target, settings = CASES[case]
    draft = make_parallel(target, **settings)
    folder = save_draft(draft, tmp_path / "draft")
    if engine == "speculators" and case == "3.1 norms":
        with pytest.raises(DraftError, match="drops fc_norm"):
            export_draft(folder, "speculators")
        return
    out = export_draft(folder, engine, dtype="float32", out=tmp_path / "out").folder  # type: ignore[arg-type]
    reader = "vllm" if engine == "hf" else engine
    served = load_as(reader, out, depth=DEPTH, target_embeddings=target.embeddings)
    states, ids = states_of(target), torch.randint(VOCAB, (SLOTS,), generator=torch.Generator().manual_seed(9))
    expected = module_logits(draft, ids, torch.cat([states[b] for b in target.aux_layer_ids], dim=-1))
    assert expected.std() > 0.1
    torch.testing.assert_close(engine_logits(served, ids, states), expected, atol=1e-5, rtol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert config["mask_token_id"] == config["pard_token"] == MASK_TOKEN and "parallel_drafting" not in config


def test_sglang_serves_no_parallel_drafts(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="no P-EAGLE"):
        export_draft(save_draft(make_parallel(MadeTarget()), tmp_path / "draft"), "sglang")


def test_placeholder_or_mask_token_that_is_missing_is_found(tmp_path: Path) -> None:
    out = export_draft(save_draft(make_parallel(MadeTarget()), tmp_path / "draft"), "vllm", out=tmp_path / "out").folder
    without_digests(out)
    config, tensors = json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({**config, "mask_token_id": None, "pard_token": None}))
    assert [finding.name for finding in check_draft(out, "vllm").errors] == ["mask_token_id"]
    (out / "config.json").write_text(json.dumps(config))
    save_file({name: tensor for name, tensor in tensors.items() if name != "mask_hidden"}, out / "model.safetensors")
    assert [finding.name for finding in check_draft(out, "vllm").errors] == ["mask_hidden"]


def test_parallel_draft_is_initialised_from_one_that_was_not(tmp_path: Path) -> None:
    published = export_draft(save_draft(make_draft(MadeTarget()), tmp_path / "draft"), "hf", dtype="float32").folder
    draft = make_parallel(MadeTarget())
    placeholder = draft.mask_hidden.detach().clone()
    notes = init_from(draft, published)
    assert torch.equal(draft.mask_hidden, placeholder) and "mask_hidden as newly built" in notes[0]
    assert torch.equal(draft.lm_head.weight, load_file(published / "model.safetensors")["lm_head.weight"])
