import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Phi3Config

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.layers import default_aux_layer_ids, rope_kinds, validate_aux_layer_ids
from eaglepipe.target.load import load_target
from eaglepipe.vocab import build_draft_vocab
from tests.target.tiny_targets import CONFIGS, HIDDEN, LAYERS, SHAPE, VOCAB, make_model, save_target, tiny_target

AUX = (2, 4, LAYERS)
LENGTHS = (20, 11, 5)


def batch():
    ids = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    return ids, mask.long()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def captured(request, tmp_path_factory):
    return HFEagle3TargetModel(tiny_target(request.param, tmp_path_factory.mktemp("target")), AUX)


def test_aux_states_are_the_models_own_hidden_states_at_the_boundaries(captured):
    ids, mask = batch()
    states = captured.capture(ids, mask)
    last_layer = []
    handle = (
        captured.target.model.get_decoder()
        .get_submodule("h" if hasattr(captured.target.model.get_decoder(), "h") else "layers")[-1]
        .register_forward_hook(lambda module, args, output: last_layer.append(output))
    )
    with torch.no_grad():
        hidden_states = captured.target.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    handle.remove()
    before_norm = last_layer[0][0] if isinstance(last_layer[0], tuple) else last_layer[0]
    for row, length in enumerate(LENGTHS):
        for slot, expected in enumerate((hidden_states[2], hidden_states[4], before_norm)):
            torch.testing.assert_close(states.aux[row, :length, slot], expected[row, :length], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            states.last_hidden[row, :length], hidden_states[-1][row, :length], rtol=1e-5, atol=1e-5
        )


def test_a_row_in_a_batch_equals_the_sample_alone(captured):
    ids, mask = batch()
    together = captured.capture(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = captured.capture(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together.aux[row, :length], alone.aux[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.last_hidden[row, :length], alone.last_hidden[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("piece_tokens", [7, 20])
def test_pieces_of_a_sequence_give_the_states_of_one_forward(captured, piece_tokens):
    ids = batch()[0][0].int().numpy()
    whole = captured.capture_tokens([ids])
    pieces = list(captured.capture_pieces(ids, piece_tokens))
    assert [len(piece.last_hidden) for piece in pieces] == [len(part) for part in torch.arange(20).split(piece_tokens)]
    for name in ("aux", "last_hidden"):
        found = torch.cat([getattr(piece, name) for piece in pieces])
        torch.testing.assert_close(found, getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_a_target_that_forgets_between_pieces_is_refused(tmp_path, monkeypatch):
    model = HFEagle3TargetModel(tiny_target("llama", tmp_path), AUX)
    monkeypatch.setattr("eaglepipe.target.pieces.cache_argument", lambda _: "unknown_cache")
    with pytest.raises(TargetError, match=r"in pieces .*set precompute.chunk_tokens to data.max_length"):
        list(model.capture_pieces(np.arange(20, dtype=np.int32), 8))


def test_head_logits_are_the_models_own(captured):
    ids, mask = batch()
    with torch.no_grad():
        expected = captured.target.model(ids).logits[0]
    logits = captured.head_logits(captured.capture(ids, mask).last_hidden[0])
    assert logits.dtype == torch.float32 and logits.shape == (max(LENGTHS), VOCAB)
    torch.testing.assert_close(logits, expected.float(), rtol=1e-5, atol=1e-5)


def test_start_tensors_reproduce_the_logits_of_the_draft_vocabulary(captured):
    vocab = build_draft_vocab(torch.arange(VOCAB).numpy(), 20, VOCAB)
    start = captured.draft_start_tensors(vocab, full_head=True)
    ids, mask = batch()
    hidden = captured.capture(ids, mask).last_hidden[0]
    raw = torch.nn.functional.linear(hidden, start["lm_head.weight"], start.get("lm_head.bias"))
    expected = captured.head_logits(hidden)[:, vocab.selected_token_ids]
    torch.testing.assert_close(captured.head_spec().apply(raw), expected, rtol=1e-5, atol=1e-5)
    assert start["lm_head_full.weight"].shape == start["embed_tokens.weight"].shape == (VOCAB, HIDDEN)
    assert start["norm.weight"].shape == (HIDDEN,)
    assert "lm_head_full.weight" not in captured.draft_start_tensors(vocab, full_head=False)


def test_a_final_norm_stored_as_offset_from_one_comes_out_as_a_plain_scale(tmp_path):
    target = tiny_target("gemma2", tmp_path)
    capture = HFEagle3TargetModel(target, AUX)
    scale = capture.draft_start_tensors(build_draft_vocab(torch.ones(VOCAB).numpy(), None, VOCAB), full_head=False)
    torch.testing.assert_close(scale["norm.weight"], target.model.model.norm.weight + 1.0)


def test_captured_states_can_enter_autograd(tmp_path):
    states = HFEagle3TargetModel(tiny_target("llama", tmp_path), AUX).capture(*batch())
    fc = torch.nn.Linear(HIDDEN, 3)
    fc(states.aux).sum().backward()
    assert fc.weight.grad is not None


def test_no_hook_stays_behind(tmp_path):
    capture = HFEagle3TargetModel(tiny_target("llama", tmp_path), AUX)
    capture.capture(*batch())
    with pytest.raises(IndexError):
        capture.capture(torch.full((1, 4), VOCAB + 5), torch.ones(1, 4))
    assert not any(layer._forward_hooks for layer in capture.target.model.model.layers)


def test_left_padding_is_a_programmers_mistake(tmp_path):
    capture = HFEagle3TargetModel(tiny_target("llama", tmp_path), AUX)
    with pytest.raises(AssertionError, match="right"):
        capture.capture(torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]]))


def test_nan_weights_pass_the_probe_and_are_left_to_the_rows(tmp_path):
    save_target(CONFIGS["llama"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][5] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capture = HFEagle3TargetModel(load_target(TargetConfig(path=str(tmp_path)), "cpu"), AUX)
    assert capture.head_logits(capture.capture(*batch()).last_hidden[0]).isnan().any()


def test_an_architecture_whose_logits_cannot_be_reproduced_is_refused(tmp_path):
    target = tiny_target("llama", tmp_path)

    class Odd(type(target.model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.1
            return output

    target.model.__class__ = Odd
    with pytest.raises(TargetError, match="Odd: its logits are not"):
        HFEagle3TargetModel(target, AUX)


def test_a_head_that_contradicts_the_config_is_refused(tmp_path):
    save_target(CONFIGS["llama"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    target = load_target(TargetConfig(path=str(tmp_path)), "cpu")
    target.text_config.vocab_size = config["vocab_size"] + 1
    with pytest.raises(TargetError, match="67 rows, its config a vocabulary of 68"):
        HFEagle3TargetModel(target, AUX)


def test_default_boundaries_of_common_depths():
    assert default_aux_layer_ids(32) == (2, 16, 29)
    assert default_aux_layer_ids(36) == (2, 18, 33)
    assert default_aux_layer_ids(7) == (2, 3, 4)


@pytest.mark.parametrize(("depth", "ids"), [(4, (1, 2, 3)), (5, (1, 2, 4)), (6, (1, 3, 5))])
def test_default_boundaries_of_a_shallow_target_are_early_middle_and_late(depth, ids):
    assert default_aux_layer_ids(depth) == validate_aux_layer_ids(ids, depth) == ids


@pytest.mark.parametrize("depth", range(1, 4))
def test_a_target_too_shallow_for_the_default_is_refused_with_its_depth(depth):
    with pytest.raises(TargetError, match=f"{depth} layers"):
        default_aux_layer_ids(depth)


@pytest.mark.parametrize("ids", [(), (0, 1), (1, 8), (-1, 2), (2, 2, 3), (3, 2)])
def test_boundaries_out_of_range_repeated_or_unordered_are_named(ids):
    with pytest.raises(TargetError, match=rf"aux_layer_ids \[{', '.join(map(str, ids))}\]: the target has 7 layers"):
        validate_aux_layer_ids(ids, 7)


def test_every_boundary_of_a_shallow_target_may_be_asked_for():
    assert validate_aux_layer_ids([1], 1) == (1,)
    assert validate_aux_layer_ids((1, 2, 3, 4), 4) == (1, 2, 3, 4)


def test_rows_beyond_a_dynamic_rope_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    make_model(LlamaConfig(**SHAPE, rope_parameters=rope)).save_pretrained(tmp_path)
    capture = HFEagle3TargetModel(load_target(TargetConfig(path=str(tmp_path)), "cpu"), AUX)
    capture.capture(torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16))
    with pytest.raises(TargetError, match="dynamic rope changes beyond 16 tokens"):
        capture.capture(torch.zeros(1, 17, dtype=torch.long), torch.ones(1, 17))


def test_long_rope_asks_for_batches_that_do_not_cross_its_switch(tmp_path):
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(**shape, original_max_position_embeddings=16, rope_parameters=rope)
    make_model(config).save_pretrained(tmp_path)
    assert rope_kinds(load_target(TargetConfig(path=str(tmp_path)), "cpu").text_config)["longrope"] == 16


def test_weights_that_the_whole_models_first_forward_unpacks_are_captured_unpacked(tmp_path):
    """As compressed-tensors has it: compressed layers and lm_head until a hook of the whole model runs."""
    plain = tiny_target("llama", tmp_path / "a")
    packed = tiny_target("llama", tmp_path / "b")
    packers = [packed.model.lm_head, *(layer.mlp.up_proj for layer in packed.model.model.layers)]
    for module in packers:
        module.weight_packed = torch.nn.Parameter(module.weight.half(), requires_grad=False)
        module.weight_scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        del module.weight

    def unpack(_model, _args):
        hook.remove()
        for module in packers:
            module.weight = torch.nn.Parameter(module.weight_packed.float(), requires_grad=False)
            del module.weight_packed

    hook = packed.model.register_forward_pre_hook(unpack)
    with torch.no_grad():
        for module in (plain.model.lm_head, *(layer.mlp.up_proj for layer in plain.model.model.layers)):
            module.weight.copy_(module.weight.half())
    expected, captured = (HFEagle3TargetModel(target, [1, 2]) for target in (plain, packed))
    ids = torch.arange(9)[None]
    want, have = (model.capture(ids, torch.ones_like(ids)) for model in (expected, captured))
    assert torch.equal(have.aux, want.aux) and torch.equal(have.last_hidden, want.last_hidden)
    vocab = build_draft_vocab(np.ones(VOCAB, np.int64), 8, VOCAB)
    want, have = (model.draft_start_tensors(vocab, full_head=True) for model in (expected, captured))
    assert have.keys() == want.keys() and all(torch.equal(have[name], want[name]) for name in want)
