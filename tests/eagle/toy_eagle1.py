"""A small live target, EAGLE-1/2 drafts for it, batches of its documents, and their loss token by token."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from eaglepipe.eagle.core_v12 import EagleTrainerModule
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama_v12 import LlamaEagleDraftModel
from eaglepipe.target_head import TargetHead

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
"""The names of a draft of one layer."""


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
    return EagleTrainerModule(draft, TargetHead(weight=target.lm_head.weight), **wanted)


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
