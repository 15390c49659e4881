"""The P-EAGLE draft: its keys, its placeholder, its mask token."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_gpt_oss import GptOssEagle3DraftModel
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.errors import DraftError
from tests.eagle.peagle.peagle_oracle import MASK_TOKEN, make_peagle_draft
from tests.eagle.toy_drafts import VOCAB_SIZE, make_draft, target_config


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 3}, {"fc_norm": True}])
def test_parallel_drafting_adds_one_key_and_eagle3_gains_none(shape):
    plain, parallel = make_draft(**shape), make_peagle_draft(**shape)
    assert parallel.state_dict().keys() - plain.state_dict().keys() == {"mask_hidden"}
    assert not plain.state_dict().keys() - parallel.state_dict().keys()
    assert parallel.state_dict()["mask_hidden"].shape == (1, 1, 3 * 24)
    assert not {"parallel_drafting", "mask_token_id"} & plain.config.to_dict().keys()


def test_state_round_trips_through_safetensors_and_from_pretrained(tmp_path):
    draft = make_peagle_draft(num_hidden_layers=2)
    save_file(draft.state_dict(), tmp_path / "state.safetensors")
    other = LlamaEagle3DraftModel(draft.config)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    draft.save_pretrained(tmp_path / "draft")
    for loaded in (other, LlamaEagle3DraftModel.from_pretrained(tmp_path / "draft")):
        assert loaded.state_dict().keys() == draft.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in draft.state_dict().items())
        assert (loaded.config.parallel_drafting, loaded.config.mask_token_id) == (True, MASK_TOKEN)


def test_placeholder_is_projected_as_aux_states_are():
    draft = make_peagle_draft(fc_norm=True)
    expected = draft.project_hidden_states(draft.mask_hidden)[0]
    assert torch.equal(draft.masked_projected_hidden(), expected) and expected.shape == (1, 24)
    assert draft.mask_hidden.requires_grad and draft.mask_hidden.abs().sum() > 0
    with pytest.raises(DraftError, match="parallel_drafting"):
        make_draft().masked_projected_hidden()


def test_depth_0_alone_is_an_eagle3_step():
    draft = make_peagle_draft(num_hidden_layers=2)
    ids, aux = torch.arange(12)[None], torch.randn(1, 12, 72)
    hidden = draft.project_hidden_states(aux)
    slots = torch.arange(12)
    mask = draft.build_peagle_block_mask(slots, torch.zeros_like(slots), torch.tensor([5, 7]), 12)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    parallel = draft.forward_peagle(ids, hidden, positions, mask)
    torch.testing.assert_close(parallel, draft(ids, hidden, seq_lens=torch.tensor([[5, 7]])))
    rows = torch.tensor([1, 8])
    torch.testing.assert_close(draft.forward_peagle(ids, hidden, positions, mask, rows=rows), parallel[:, rows])


def test_gpt_oss_turns_its_elements_as_its_steps():
    target = GptOssConfig(vocab_size=50, num_hidden_layers=8, hidden_size=48, pad_token_id=0)
    sizes = {"intermediate_size": 32, "num_attention_heads": 6, "num_key_value_heads": 2}
    torch.manual_seed(0)
    draft = GptOssEagle3DraftModel(draft_config_from_target(target, parallel_drafting=True, **sizes))
    ids, slots = torch.arange(20)[None], torch.arange(20)
    hidden = draft.project_hidden_states(torch.randn(1, 20, 3 * 48))
    mask = draft.build_peagle_block_mask(slots, torch.zeros_like(slots), torch.tensor([20]), 20)
    torch.testing.assert_close(draft.forward_peagle(ids, hidden, slots[None], mask), draft(ids, hidden))


def test_mask_token_is_the_given_one_else_the_pad_token_else_an_error():
    padded = target_config(pad_token_id=7)
    assert draft_config_from_target(padded, parallel_drafting=True).mask_token_id == 7
    assert draft_config_from_target(padded, parallel_drafting=True, mask_token_id=2).mask_token_id == 2
    with pytest.raises(DraftError, match=r"without mask token.*draft\.mask_token_id"):
        draft_config_from_target(target_config(), parallel_drafting=True)
    with pytest.raises(DraftError, match=f"outside the target's vocabulary of {VOCAB_SIZE}"):
        draft_config_from_target(padded, parallel_drafting=True, mask_token_id=VOCAB_SIZE)


def test_long_documents_choose_the_frequencies_of_dynamic_rope():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    target = target_config(rope_parameters=rope, max_position_embeddings=8)
    config = draft_config_from_target(target, parallel_drafting=True, mask_token_id=0)
    torch.manual_seed(0)
    draft = LlamaEagle3DraftModel(config)
    ids, aux = torch.arange(20)[None], torch.randn(1, 20, 72)
    hidden, slots = draft.project_hidden_states(aux), torch.arange(20)
    mask = draft.build_peagle_block_mask(slots, torch.zeros_like(slots), torch.tensor([20]), 20)
    torch.testing.assert_close(draft.forward_peagle(ids, hidden, slots[None], mask), draft(ids, hidden))
