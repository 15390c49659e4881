"""The TTT unroll of one document as an explicit loop over slots, straight from the formulas; float64."""

from dataclasses import dataclass, field

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from tests.eagle.toy_drafts import Document


@dataclass
class Totals:
    loss_sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    correct: list[int] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    valid: list[int] = field(default_factory=list)


def unroll_slots(  # noqa: PLR0915 - one loop, read against the formulas
    draft: LlamaEagle3DraftModel, document: Document, num_steps: int
) -> Totals:
    """Sums for each step, one slot at a time."""
    config = draft.config
    weights = {name: parameter.detach().double() for name, parameter in draft.named_parameters()}
    rotary = LlamaRotaryEmbedding(config).double()
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    layer = "model.layers.0"

    def norm(x, name):
        return x / torch.sqrt((x * x).mean() + config.rms_norm_eps) * weights[name + ".weight"]

    def rotate(x, position):
        cos, sin = rotary(x[None], torch.tensor([[position]]))
        half = config.head_dim // 2
        turned = torch.cat((-x[:, half:], x[:, :half]), dim=-1)
        return x * cos[0, 0].double() + turned * sin[0, 0].double()

    def read(slot, step):
        """Embedding and state of a slot -> q, k, v of this step."""
        token = int(document.input_ids[slot + step]) if slot + step < len(document) else 0
        embed = norm(weights["model.embed_tokens.weight"][token], f"{layer}.input_layernorm")
        both = torch.cat((embed, norm(states[slot], f"{layer}.hidden_norm")))
        q, k, v = (
            (weights[f"{layer}.self_attn.{name}_proj.weight"] @ both).view(-1, config.head_dim) for name in "qkv"
        )
        return rotate(q, slot + step), rotate(k, slot + step), v

    states = project(draft, weights, document.aux.double())
    keys, values, totals = [], [], Totals()
    chain = [True] * len(document)
    supervised_so_far = [True] * len(document)
    for step in range(num_steps):
        read_now = [read(slot, step) for slot in range(len(document))]
        keys.append([k for _, k, _ in read_now])
        values.append([v for _, _, v in read_now])
        loss_sum, count, correct, hits, valid = 0.0, 0, 0, 0, 0
        for slot, (query, _, _) in enumerate(read_now):
            visible = [(0, other) for other in range(slot + 1)] + [(i, slot) for i in range(1, step + 1)]
            attended = []
            for head in range(heads):
                scores = torch.stack([query[head] @ keys[i][s][head // groups] for i, s in visible])
                shares = (scores * config.head_dim**-0.5).softmax(0)
                attended.append(
                    sum(p * values[i][s][head // groups] for p, (i, s) in zip(shares, visible, strict=True))
                )
            state = states[slot] + weights[f"{layer}.self_attn.o_proj.weight"] @ torch.cat(attended)
            inner = norm(state, f"{layer}.post_attention_layernorm")
            gate, up = (weights[f"{layer}.mlp.{name}_proj.weight"] @ inner for name in ("gate", "up"))
            state = state + weights[f"{layer}.mlp.down_proj.weight"] @ (torch.nn.functional.silu(gate) * up)
            normed = norm(state, "model.norm")
            states[slot] = normed if config.norm_output else state
            target = slot + step
            if target >= len(document):
                chain[slot] = supervised_so_far[slot] = False
                continue
            logits = weights["lm_head.weight"] @ normed
            matched = bool(document.position_mask[target]) and logits.argmax() == document.probs[target].argmax()
            supervised_so_far[slot] &= bool(document.loss_mask[target])
            chain[slot] &= bool(matched) and supervised_so_far[slot]
            if document.position_mask[target]:
                loss_sum -= float(document.probs[target].double() @ logits.log_softmax(0))
                count += 1
                correct += int(matched)
            valid += supervised_so_far[slot]
            hits += chain[slot]
        for total, value in zip(
            (totals.loss_sums, totals.counts, totals.correct, totals.hits, totals.valid),
            (loss_sum, count, correct, hits, valid),
            strict=True,
        ):
            total.append(value)
    return totals


def project(draft, weights, aux):
    config = draft.config
    if config.fc_norm:
        chunks = aux.unflatten(-1, (config.num_aux_hidden_states, -1))
        chunks = chunks / torch.sqrt((chunks * chunks).mean(-1, keepdim=True) + config.rms_norm_eps)
        gains = torch.stack([weights[f"model.fc_norm.{i}.weight"] for i in range(config.num_aux_hidden_states)])
        aux = (chunks * gains).flatten(-2)
    return list(aux @ weights["model.fc.weight"].T)
