"""EAGLE-1/2: the draft and its loss against ones made of transformers' own layers and the target's live outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, PretrainedConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from eaglepipe.eagle.core_v12 import EagleTrainerModule
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama_v12 import EagleLlamaAttention, LlamaEagleDraftModel, _build_causal_mask
from eaglepipe.eagle.frozen_head import FrozenHead
from eaglepipe.eagle.registry import EAGLE1_DRAFT_REGISTRY, resolve_eagle1_draft_spec
from eaglepipe.errors import DraftError

VOCAB = 37
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}
KEYS = {
    "embed_tokens.weight",
    "fc.weight",
    "layers.0.post_attention_layernorm.weight",
    *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}


def make_target() -> LlamaForCausalLM:
    torch.manual_seed(1)
    target = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    target.lm_head.weight.data.normal_(0, 0.5)
    return target


def make_draft(config: PretrainedConfig | None = None, **shape: Any) -> LlamaEagleDraftModel:
    torch.manual_seed(2)
    draft = LlamaEagleDraftModel(draft_config_from_target(config or LlamaConfig(**LLAMA), **shape))
    for parameter in draft.parameters():
        parameter.data.normal_(0, 0.3) if parameter.dim() > 1 else parameter.data.normal_(1, 0.2)
    return draft


def make_trainer(target: LlamaForCausalLM, draft: LlamaEagleDraftModel, **settings: Any) -> EagleTrainerModule:
    wanted = {"feature_noise": 0.0, "chain_steps": 3, "head_chunk_rows": 4, **settings}
    return EagleTrainerModule(draft, FrozenHead(weight=target.lm_head.weight), **wanted)


@torch.no_grad()
def documents(target: LlamaForCausalLM, lengths: list[int]) -> list[dict[str, torch.Tensor]]:
    """Token ids, supervised rows, live last hidden states and logits of each document; unshifted, [n, ...]."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in lengths:
        ids = torch.randint(VOCAB, (length,), generator=generator)
        output = target(input_ids=ids[None], output_hidden_states=True)
        supervised = torch.rand(length, generator=generator) < 0.6
        supervised[-1] = False
        rows = {
            "ids": ids,
            "supervised": supervised,
            "features": output.hidden_states[-1][0],
            "logits": output.logits[0],
        }
        made.append(rows)
    return made


def shifted(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat((rows[1:], torch.zeros_like(rows[:1])))


def arguments(rows: list[list[dict[str, torch.Tensor]]], num_slots: int) -> dict[str, torch.Tensor]:
    """Documents packed row by row, as the trainer takes them."""
    empty = {"input_ids": 0, "loss_mask": False, "attention_mask": 0, "position_ids": 0, "doc_remaining": 0}
    batch = {name: torch.full((len(rows), num_slots), value) for name, value in empty.items()}
    features = torch.zeros(len(rows), num_slots, LLAMA["hidden_size"])
    seq_lens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    for number, row in enumerate(rows):
        start = 0
        for index, document in enumerate(row):
            length = len(document["ids"])
            span = slice(start, start + length)
            batch["input_ids"][number, span] = shifted(document["ids"])
            batch["loss_mask"][number, span] = shifted(document["supervised"])
            batch["attention_mask"][number, span] = 1
            batch["position_ids"][number, span] = torch.arange(length)
            batch["doc_remaining"][number, span] = torch.arange(length - 1, -1, -1)
            features[number, span] = document["features"]
            seq_lens[number, index] = length
            start += length
        seq_lens[number, len(row) - 1] += num_slots - start
    return {**batch, "target_hidden_states": features, "seq_lens": seq_lens}


def padded(target: LlamaForCausalLM, lengths: list[int]) -> dict[str, torch.Tensor]:
    return arguments([[document] for document in documents(target, lengths)], max(lengths))


def hf_layer(draft: LlamaEagleDraftModel) -> LlamaDecoderLayer:
    """transformers' decoder layer around the draft's own parameters, without an input norm."""
    config = LlamaConfig(**LLAMA, attn_implementation="eager")
    layer, mine = LlamaDecoderLayer(config, 0), draft.layers[0]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(layer.self_attn, name, getattr(mine.self_attn, name))
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(layer.mlp, name, getattr(mine.mlp, name))
    layer.input_layernorm = nn.Identity()
    layer.post_attention_layernorm.weight = mine.post_attention_layernorm.weight
    return layer


def hand_loss(
    target: LlamaForCausalLM, draft: LlamaEagleDraftModel, rows: list[dict[str, torch.Tensor]]
) -> torch.Tensor:
    """Token by token: what reads x[i] and f[i-1] is to say f[i], and through the head what the target says there."""
    layer, rotary = hf_layer(draft), LlamaRotaryEmbedding(LlamaConfig(**LLAMA))
    regression, classification, count = torch.zeros(()), torch.zeros(()), 0
    for document in rows:
        ids, features = document["ids"], document["features"]
        states = draft.fc(torch.cat((draft.embed_tokens(ids[1:]), features[:-1]), dim=-1))[None]
        length = len(ids) - 1
        causal = torch.full((length, length), -torch.inf).triu(1)[None, None]
        tables = rotary(states, torch.arange(length)[None])
        predicted = layer(states, attention_mask=causal, position_embeddings=tables)
        predicted = (predicted[0] if isinstance(predicted, tuple) else predicted)[0]
        for i in range(1, len(ids)):
            if document["supervised"][i]:
                said = target.lm_head(predicted[i - 1])
                difference = (predicted[i - 1] - features[i]).abs()
                regression = regression + torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean()
                classification = classification - (document["logits"][i].softmax(0) * said.log_softmax(0)).sum()
                count += 1
    return (regression + 0.1 * classification) / count


def gradients(draft: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = dict(draft.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def test_loss_and_gradients_are_those_computed_by_hand_from_the_live_target() -> None:
    target, draft = make_target(), make_draft()
    rows = documents(target, [9, 5, 12])
    metrics = make_trainer(target, draft).train()(**arguments([[row] for row in rows], 12))
    expected = hand_loss(target, draft, rows)
    torch.testing.assert_close(metrics.loss, expected, rtol=1e-5, atol=1e-6)
    mine, by_hand = gradients(draft, metrics.loss), gradients(draft, expected)
    for name in KEYS:
        torch.testing.assert_close(mine[name], by_hand[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_packed_documents_learn_what_padded_rows_learn(num_layers: int) -> None:
    target, draft = make_target(), make_draft(num_hidden_layers=num_layers)
    rows = documents(target, [9, 5, 12, 4])
    module = make_trainer(target, draft).eval()
    packed = module(**arguments([[rows[0], rows[1]], [rows[2], rows[3]]], 18))
    apart = module(**arguments([[row] for row in rows], 12))
    torch.testing.assert_close(packed.loss, apart.loss, rtol=1e-5, atol=0)
    for name in ("counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(packed, name), getattr(apart, name)), name
    mine, others = gradients(draft, packed.loss), gradients(draft, apart.loss)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_chain_counts_are_those_of_drafting_token_by_token(num_layers: int) -> None:
    """From each slot on, the draft reads its own features behind the target's, as it does when it decodes."""
    target, draft = make_target(), make_draft(num_hidden_layers=num_layers)
    (document,) = documents(target, [11])
    document["supervised"][2:-1] = True
    ids, features, supervised = document["ids"], document["features"], document["supervised"]
    steps = 4
    hits, valid = [0] * steps, [0] * steps
    for slot in range(len(ids) - 1):
        read, chain = features[: slot + 1], True
        for step in range(steps):
            if slot + step + 1 >= len(ids) or not supervised[slot + 1 : slot + step + 2].all():
                break
            row = ids[1 : slot + step + 2][None]
            state = draft(row, read[None], torch.ones_like(row))[0, -1]
            chain = chain and bool(target.lm_head(state).argmax() == document["logits"][slot + step + 1].argmax())
            valid[step] += 1
            hits[step] += chain
            read = torch.cat((read, state[None]))
    draft_that_hits = make_trainer(target, draft, chain_steps=steps).eval()(**arguments([[document]], 11))
    assert draft_that_hits.valid.tolist() == draft_that_hits.counts.tolist() == valid
    assert draft_that_hits.hits.tolist() == hits
    assert valid[0] > valid[-1] > 0


@torch.no_grad()
def test_a_perfect_draft_accepts_whole_chains() -> None:
    """With a head that looks at nothing, every greedy token is the same: all chains hit."""
    target = make_target()
    target.lm_head.weight.data.zero_()
    metrics = make_trainer(target, make_draft()).eval()(**padded(target, [9, 12]))
    assert metrics.hits.tolist() == metrics.valid.tolist() and int(metrics.hits[-1]) > 0


def test_training_reports_the_first_depth_alone_and_evaluation_all() -> None:
    target, draft = make_target(), make_draft()
    module, batch = make_trainer(target, draft), padded(target, [9, 12])
    training, evaluation = module.train()(**batch), module.eval()(**batch)
    assert training.counts[1:].tolist() == [0, 0] and training.valid[1:].tolist() == [0, 0]
    assert training.counts[0] == evaluation.counts[0] and evaluation.counts[1] > 0
    torch.testing.assert_close(training.loss, evaluation.loss)
    torch.testing.assert_close(evaluation.loss_sums[0] / evaluation.counts[0], evaluation.loss.detach())


def test_a_batchs_share_is_its_sum_over_the_normalizer() -> None:
    target, draft = make_target(), make_draft()
    module, batch = make_trainer(target, draft).train(), padded(target, [9, 12])
    own = module(**batch)
    share = module(**batch, normalizers=torch.tensor([100, 1, 1]))
    torch.testing.assert_close(share.loss * 100, own.loss * own.counts[0])


def test_noise_enters_training_alone_and_follows_its_seeds() -> None:
    target, draft = make_target(), make_draft()
    quiet, batch = make_trainer(target, draft), padded(target, [9, 12])
    noisy = make_trainer(target, draft, feature_noise=0.1)
    seeds = torch.randint(2**32, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy.eval()(**batch, noise_seeds=seeds).loss, quiet.eval()(**batch).loss)
    first = noisy.train()(**batch, noise_seeds=seeds).loss
    assert first != quiet.train()(**batch).loss
    assert torch.equal(noisy(**batch, noise_seeds=seeds).loss, first)
    assert noisy(**batch, noise_seeds=seeds.flip(1)).loss != first


def test_state_dict_has_exactly_the_documented_keys_and_round_trips(tmp_path: Path) -> None:
    draft = make_draft()
    tensors = draft.state_dict()
    assert set(tensors) == KEYS
    assert tensors["fc.weight"].shape == (16, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    other = LlamaEagleDraftModel(draft.config)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert all(torch.equal(value, tensors[name]) for name, value in other.state_dict().items())


def test_deeper_layers_have_an_input_norm_and_a_configured_bias_has_its_place() -> None:
    config = draft_config_from_target(LlamaConfig(**LLAMA), num_hidden_layers=2)
    config.bias = True
    names = set(LlamaEagleDraftModel(config).state_dict())
    assert "fc.bias" in names and "layers.1.input_layernorm.weight" in names
    assert "layers.0.input_layernorm.weight" not in names and not any(name.startswith("norm") for name in names)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, rope_theta=5e5),
        Phi3Config(**LLAMA, pad_token_id=0, rms_norm_eps=1e-4),
        Qwen3Config(**LLAMA, head_dim=12),
    ],
    ids=lambda config: config.model_type,
)
def test_dense_configs_build_a_draft_that_follows_them(config: PretrainedConfig) -> None:
    draft = make_draft(config)
    names = set(draft.state_dict())
    head_dim = getattr(config, "head_dim", None) or 4
    assert draft.layers[0].self_attn.q_proj.weight.shape == (4 * head_dim, 16)
    assert ("layers.0.self_attn.q_proj.bias" in names) == bool(getattr(config, "attention_bias", False))
    assert ("layers.0.mlp.up_proj.bias" in names) == bool(getattr(config, "mlp_bias", False))
    assert draft.layers[0].post_attention_layernorm.eps == config.rms_norm_eps
    ids = torch.arange(6)[None]
    assert draft(ids, torch.randn(1, 6, 16), torch.ones_like(ids)).shape == (1, 6, 16)


def test_registry_knows_dense_targets_and_names_them_otherwise() -> None:
    assert resolve_eagle1_draft_spec(["Unknown", "Qwen3ForCausalLM"]).draft_cls is LlamaEagleDraftModel
    assert {"LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM"} <= set(EAGLE1_DRAFT_REGISTRY)
    with pytest.raises(DraftError, match=r"EAGLE-1.*MambaForCausalLM.*LlamaForCausalLM"):
        resolve_eagle1_draft_spec(["MambaForCausalLM"])


def test_embeddings_are_copied_from_module_tensor_or_shards_and_can_be_frozen() -> None:
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    source = nn.Embedding(VOCAB, 16)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded = distribute_tensor(source.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
        for given in (source, source.weight, sharded):
            draft = make_draft()
            draft.copy_embeddings_from_target(given)
            assert torch.equal(draft.embed_tokens.weight, source.weight)
    finally:
        distributed.destroy_process_group()
    draft.freeze_embeddings()
    assert not draft.embed_tokens.weight.requires_grad and draft.fc.weight.requires_grad
    with pytest.raises(DraftError, match="do not fit"):
        draft.copy_embeddings_from_target(nn.Embedding(VOCAB, 8))


def test_additive_mask_is_causal_without_padding_and_attends_like_the_bool_one() -> None:
    attention_mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    mask = _build_causal_mask(attention_mask, torch.float32)
    assert mask.shape == (2, 1, 5, 5) and mask.dtype == torch.float32
    for row in range(2):
        for t in range(5):
            for s in range(5):
                readable = (s <= t and bool(attention_mask[row, s])) or s == t
                assert float(mask[row, 0, t, s]) == (0.0 if readable else torch.finfo(torch.float32).min)
    attention = make_draft().layers[0].self_attn
    assert isinstance(attention, EagleLlamaAttention)
    states, positions = torch.randn(2, 5, 16), torch.arange(5).expand(2, 5)
    torch.testing.assert_close(attention(states, mask, positions), attention(states, mask == 0, positions))
    shared = attention._repeat_kv(torch.arange(2.0)[None, :, None, None])
    assert shared.flatten().tolist() == [0, 0, 1, 1]


def test_gradient_checkpointing_changes_nothing() -> None:
    target, draft = make_target(), make_draft(num_hidden_layers=2)
    module, batch = make_trainer(target, draft).train(), padded(target, [9, 12])
    plain = gradients(draft, module(**batch).loss)
    draft.gradient_checkpointing = True
    for name, gradient in gradients(draft, module(**batch).loss).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])}, "right padding"),
        ({"loss_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]])[:, :3]}, "loss_mask has shape"),
        ({"target_hidden_states": torch.zeros(2, 4, 8)}, r"target_hidden_states has shape \[2, 4, 8\]"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 0]] * 2)}, "set on padding"),
        ({"normalizers": torch.ones(9)}, "normalizers has shape"),
    ],
    ids=["left padding", "mask shape", "width", "supervised padding", "normalizers"],
)
def test_batches_that_do_not_fit_are_refused(changes: dict[str, torch.Tensor], words: str) -> None:
    target, draft = make_target(), make_draft()
    batch = {
        "input_ids": torch.zeros(2, 4, dtype=torch.int64),
        "attention_mask": torch.ones(2, 4),
        "loss_mask": torch.tensor([[0, 1, 1, 0]] * 2),
        "target_hidden_states": torch.zeros(2, 4, 16),
    }
    with pytest.raises(DraftError, match=words):
        make_trainer(target, draft)(**{**batch, **changes})


@pytest.mark.parametrize("steps", [0, -1, True, 2.0])
def test_depths_that_are_no_positive_int_are_refused(steps: Any) -> None:
    with pytest.raises(DraftError, match="chain_steps"):
        make_trainer(make_target(), make_draft(), chain_steps=steps)


def test_a_head_of_the_draft_vocabulary_alone_is_refused() -> None:
    with pytest.raises(DraftError, match="rows of every token"):
        EagleTrainerModule(make_draft(), FrozenHead(weight=torch.zeros(20, 16)))
