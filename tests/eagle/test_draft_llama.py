"""The draft model: its config from a target's, its state names, its vocabulary map, and what it starts from."""

import pytest
import torch
from transformers import AutoConfig

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.errors import DraftError
from tests.eagle.toy_drafts import DRAFT_SIZE, VOCAB_SIZE, make_draft, selected_ids, target_config

LAYER = "model.layers.0"
KEYS = {
    "d2t",
    "t2d",
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.fc.weight",
    "model.norm.weight",
    *(f"{LAYER}.{name}.weight" for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")),
    *(f"{LAYER}.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"{LAYER}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}


def test_state_holds_exactly_the_interchange_names():
    assert make_draft().state_dict().keys() == KEYS
    norms = {f"model.fc_norm.{i}.weight" for i in range(3)}
    assert make_draft(fc_norm=True, norm_output=True).state_dict().keys() == KEYS | norms


def test_draft_of_the_whole_vocabulary_has_no_vocabulary_map():
    assert make_draft(draft_size=VOCAB_SIZE).state_dict().keys() == KEYS - {"d2t", "t2d"}


def test_vocabulary_map_holds_offsets_and_membership():
    draft = make_draft()
    assert torch.equal(torch.arange(DRAFT_SIZE) + draft.d2t, selected_ids())
    assert torch.equal(draft.t2d.nonzero()[:, 0], selected_ids())
    assert (draft.d2t.dtype, draft.t2d.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize(
    "ids",
    [
        torch.arange(DRAFT_SIZE).flip(0),
        torch.arange(DRAFT_SIZE - 1),
        torch.arange(DRAFT_SIZE) + VOCAB_SIZE - DRAFT_SIZE + 1,
        torch.arange(DRAFT_SIZE) - 1,
        torch.arange(DRAFT_SIZE).clamp(min=1),
    ],
)
def test_unsorted_repeated_or_outside_ids_are_refused(ids):
    with pytest.raises(DraftError, match="ascending"):
        make_draft().set_vocab_mapping(ids)


def test_saved_draft_loads_with_equal_weights_and_outputs(tmp_path):
    draft = make_draft(fc_norm=True, head_dim=10)
    draft.save_pretrained(tmp_path)
    loaded = LlamaEagle3DraftModel.from_pretrained(tmp_path)
    for name, tensor in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids, aux = torch.arange(10)[None], torch.randn(1, 10, 72)
    outputs = [model.compute_logits(model(ids, model.project_hidden_states(aux))) for model in (draft, loaded)]
    assert torch.equal(*outputs)


def test_absent_sizes_follow_the_target_and_given_ones_win():
    target = target_config(head_dim=16, attention_bias=True, rms_norm_eps=3e-5)
    plain = draft_config_from_target(target)
    assert (plain.hidden_size, plain.head_dim, plain.num_hidden_layers) == (24, 16, 1)
    assert (plain.draft_vocab_size, plain.attention_bias, plain.rms_norm_eps) == (VOCAB_SIZE, True, 3e-5)
    given = draft_config_from_target(target, draft_vocab_size=9, hidden_size=32, num_attention_heads=2, head_dim=6)
    assert (given.hidden_size, given.target_hidden_size, given.head_dim, given.draft_vocab_size) == (32, 24, 6, 9)
    draft = LlamaEagle3DraftModel(given)
    assert draft.model.fc.weight.shape == (32, 72)
    assert draft.model.layers[0].self_attn.q_proj.weight.shape == (12, 64)
    assert draft.lm_head.weight.shape == (9, 32)


def test_config_comes_from_json_as_from_the_object():
    target = target_config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0})
    from_json = draft_config_from_target(target.to_dict())
    assert from_json.to_dict() == draft_config_from_target(target).to_dict()
    old_spelling = {**target.to_dict(), "rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    del old_spelling["rope_parameters"]
    assert draft_config_from_target(old_spelling).rope_parameters == from_json.rope_parameters


def test_text_config_of_a_nested_target_is_used():
    nested = AutoConfig.for_model("gemma3")
    draft = draft_config_from_target(nested)
    assert draft.hidden_size == nested.text_config.hidden_size
    assert draft.rope_parameters == nested.text_config.rope_parameters["full_attention"]
    assert draft_config_from_target(nested.to_dict()).to_dict() == draft.to_dict()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_key_value_heads": 3}, "share 3 key-value heads"),
        ({"num_attention_heads": 5, "head_dim": 8}, "not a multiple of 5"),
        ({"draft_vocab_size": 0}, "draft_vocab_size"),
        ({"num_aux_hidden_states": 0}, "num_aux_hidden_states"),
        ({"head_dim": 7}, "turn 7 dimensions of a head of 7"),
    ],
)
def test_sizes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(DraftError, match=message):
        draft_config_from_target(target_config(), **overrides)


def test_heads_that_long_rope_has_no_factors_for_are_refused():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    target = target_config(head_dim=8, rope_parameters={**rope, "original_max_position_embeddings": 32})
    assert draft_config_from_target(target).head_dim == 8
    with pytest.raises(DraftError, match=r"4 factors, for 8 dimensions.*heads of 6 have 6"):
        draft_config_from_target(target, head_dim=6)


def test_a_target_with_latent_attention_gets_heads_of_its_values_size():
    draft = draft_config_from_target(AutoConfig.for_model("deepseek_v3"))
    assert (draft.hidden_size, draft.head_dim, draft.num_attention_heads, draft.num_key_value_heads) == (
        7168,
        128,
        56,
        8,
    )
    given = draft_config_from_target(AutoConfig.for_model("deepseek_v3"), num_attention_heads=64, num_key_value_heads=4)
    assert (given.head_dim, given.num_attention_heads, given.num_key_value_heads) == (128, 64, 4)


def test_target_without_rotary_positions_is_refused():
    with pytest.raises(DraftError, match="has no"):
        draft_config_from_target(AutoConfig.for_model("opt"))


def test_embeddings_and_head_start_from_the_target():
    draft = make_draft()
    embeddings, head = torch.nn.Embedding(VOCAB_SIZE, 24), torch.randn(DRAFT_SIZE, 24)
    draft.copy_embeddings_from_target(embeddings)
    draft.copy_lm_head_from_target(head)
    assert torch.equal(draft.model.embed_tokens.weight, embeddings.weight)
    assert torch.equal(draft.lm_head.weight, head)
    with pytest.raises(DraftError, match="hidden_size"):
        draft.copy_embeddings_from_target(torch.zeros(VOCAB_SIZE, 32))


def test_frozen_embeddings_get_no_gradient():
    draft = make_draft()
    draft.freeze_embeddings()
    draft(torch.arange(10)[None], draft.project_hidden_states(torch.randn(1, 10, 72))).sum().backward()
    assert draft.model.embed_tokens.weight.grad is None
    assert draft.model.fc.weight.grad is not None


def test_norm_output_carries_the_normed_state_and_leaves_the_head_alone():
    plain, normed = make_draft(), make_draft(norm_output=True)
    ids, aux = torch.arange(10)[None], torch.randn(1, 10, 72)
    state = plain(ids, plain.project_hidden_states(aux))
    carried = normed(ids, normed.project_hidden_states(aux))
    assert torch.equal(carried, plain.model.norm(state))
    assert torch.equal(normed.compute_logits(carried), plain.compute_logits(state))


def test_recurrent_step_appends_its_keys_and_values():
    draft, cache = make_draft(), [[], []]
    ids = torch.arange(10)[None]
    state = draft.project_hidden_states(torch.randn(1, 10, 72))
    for _ in range(3):
        state = draft(ids, state, cache_hidden=cache)
    assert [tensor.shape for tensors in cache for tensor in tensors] == [(1, 2, 10, 6)] * 6
