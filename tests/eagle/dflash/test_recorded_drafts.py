"""The forward of a block draft, its losses and gradients against what the `speculators` package computed."""

import pytest
import torch

from eaglepipe.eagle.dflash.config import dflash_config_from_target
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.dflash.dspark import DSparkDraftModel
from eaglepipe.eagle.dflash.visibility import BlockVisibility
from tests.eagle.dflash.recorded_drafts import MIXED, NAMES, Recorded, recorded, target

HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")


def made(record: Recorded) -> DFlashDraftModel:
    """The recorded draft in our class."""
    layer, settings, shared = record.settings["layer"], record.settings, target()
    kinds = layer["layer_types"]
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    vocab_size, hidden_size = shared["embed_tokens"].shape
    config = dflash_config_from_target(
        {**layer, "model_type": "qwen3", "vocab_size": vocab_size, "hidden_size": hidden_size, "sliding_window": None},
        **{name: layer[name] for name in sizes},
        draft_vocab_size=settings["draft_vocab_size"],
        num_aux_hidden_states=settings["num_aux"],
        block_size=settings["block_size"],
        mask_token_id=settings["mask_token_id"],
        sample_from_anchor=settings["sample_from_anchor"],
        sliding_window=layer["sliding_window"],
        full_attention_layers=tuple(i for i, kind in enumerate(kinds) if kind == "full_attention"),
        sliding_window_non_causal=settings["sliding_window_non_causal"],
    )
    config.update({name: settings[name] for name in HEADS if record.is_dspark})
    draft = DSparkDraftModel(config) if record.is_dspark else DFlashDraftModel(config)
    missing, unexpected = draft.load_state_dict(record.weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"embed_tokens.weight", "lm_head.weight", "d2t", "t2d"}
    with torch.no_grad():
        draft.embed_tokens.weight.copy_(shared["embed_tokens"])
        draft.lm_head.weight.copy_(shared["lm_head"][record.selected_token_ids])
    return draft


def logits_of(draft: DFlashDraftModel, record: Recorded) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of all blocks of the packed row, [N, B, D], and of their acceptance, [N, B]."""
    shared, anchors = target(), record.anchors
    lengths = shared["lengths"]
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    ids = torch.full_like(record.tokens, record.settings["mask_token_id"])
    ids[:, 0] = shared["ids"][anchors]
    visibility = BlockVisibility(
        starts=anchors - positions[anchors],
        stops=anchors,
        num_context=len(positions),
        width=ids.shape[1],
        device=torch.device("cpu"),
    )
    context = draft.project_hidden_states(shared["aux"][:, : record.settings["num_aux"]].flatten(1))
    block_positions = positions[anchors][:, None] + torch.arange(ids.shape[1])
    states = draft(ids, block_positions, context, positions, visibility)
    states = states.unflatten(0, tuple(ids.shape))
    logits = draft.compute_logits(states)
    if not isinstance(draft, DSparkDraftModel):
        return logits, None
    previous = shared["ids"][record.tokens]
    if not draft.config.sample_from_anchor:
        previous = torch.cat((previous[:, :1], previous[:, :-1]), dim=1)
    return logits + draft.markov_bias(states, previous), draft.forecast(states, previous)


@pytest.mark.parametrize("name", NAMES)
def test_logits_losses_and_gradients_equal_the_recorded_ones(name: str) -> None:
    record = recorded(name)
    draft = made(record)
    logits, forecasts = logits_of(draft, record)
    expected = record.tensors["logits"]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    if forecasts is not None:
        torch.testing.assert_close(forecasts, record.tensors["confidence_logits"], rtol=1e-5, atol=1e-5)
    sums = record.sums(MIXED, logits, forecasts)
    loss = sums.loss / sums.num_positions
    torch.testing.assert_close(loss, record.tensors[f"loss.{MIXED}"], rtol=1e-5, atol=1e-6)
    loss.backward()
    for key, goal in record.tensors.items():
        if key.startswith("gradient."):
            found = draft.get_parameter(key.removeprefix("gradient.")).grad
            torch.testing.assert_close(found, goal, rtol=1e-4, atol=1e-5 * float(goal.abs().max()))
