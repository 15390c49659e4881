"""P-EAGLE on one document as explicit loops over elements and what they see, straight from the formulas; float64."""

from collections.abc import Sequence

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.peagle_trainer import PeagleTrainerModule
from tests.eagle.toy_drafts import DRAFT_SIZE, VOCAB_SIZE, Document, make_draft, selected_ids

MASK_TOKEN = 3
Element = tuple[int, int]


def make_peagle_draft(**overrides) -> LlamaEagle3DraftModel:
    return make_draft(**{"parallel_drafting": True, "mask_token_id": MASK_TOKEN, **overrides})


def make_peagle(draft: LlamaEagle3DraftModel, depths: int = 4, **keywords) -> PeagleTrainerModule:
    mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill(0, selected_ids(DRAFT_SIZE), True)
    return PeagleTrainerModule(draft, selected_ids(DRAFT_SIZE), mask, depths, **keywords)


def sees(query: Element, key: Element) -> bool:
    """Inside one document."""
    (anchor, depth), (other_anchor, other_depth) = query, key
    if other_depth == 0 and other_anchor <= anchor:
        return True
    return other_anchor == anchor and other_depth <= depth


def peagle_logits(
    draft: LlamaEagle3DraftModel, weights: dict[str, torch.Tensor], document: Document, elements: Sequence[Element]
) -> torch.Tensor:
    """Logits of each element, float64 [N, D]; `weights` are the draft's parameters in float64."""
    config = draft.config
    rotary = LlamaRotaryEmbedding(config).double()
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads

    def norm(x, name):
        return x / torch.sqrt((x * x).mean() + config.rms_norm_eps) * weights[name + ".weight"]

    def rotate(x, position):
        cos, sin = rotary(x[None], torch.tensor([[position]]))
        half = config.head_dim // 2
        turned = torch.cat((-x[:, half:], x[:, :half]), dim=-1)
        return x * cos[0, 0].double() + turned * sin[0, 0].double()

    def project(aux):
        if config.fc_norm:
            chunks = aux.chunk(config.num_aux_hidden_states)
            aux = torch.cat([norm(chunk, f"model.fc_norm.{i}") for i, chunk in enumerate(chunks)])
        return weights["model.fc.weight"] @ aux

    states, embeds = [], []
    for anchor, depth in elements:
        aux = document.aux[anchor].double() if depth == 0 else weights["mask_hidden"][0, 0]
        states.append(project(aux))
        token = int(document.input_ids[anchor]) if depth == 0 else MASK_TOKEN
        embeds.append(weights["model.embed_tokens.weight"][token])
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        read = []
        for (anchor, depth), state, embed in zip(elements, states, embeds, strict=True):
            if index == 0:
                inputs = torch.cat((norm(embed, f"{layer}.input_layernorm"), norm(state, f"{layer}.hidden_norm")))
            else:
                inputs = norm(state, f"{layer}.input_layernorm")
            q, k, v = (
                (weights[f"{layer}.self_attn.{name}_proj.weight"] @ inputs).view(-1, config.head_dim) for name in "qkv"
            )
            read.append((rotate(q, anchor + depth), rotate(k, anchor + depth), v))
        after = []
        for place, (query, _, _) in enumerate(read):
            visible = [other for other in range(len(elements)) if sees(elements[place], elements[other])]
            attended = []
            for head in range(heads):
                scores = torch.stack([query[head] @ read[other][1][head // groups] for other in visible])
                shares = (scores * config.head_dim**-0.5).softmax(0)
                values = torch.stack([read[other][2][head // groups] for other in visible])
                attended.append(shares @ values)
            state = states[place] + weights[f"{layer}.self_attn.o_proj.weight"] @ torch.cat(attended)
            inner = norm(state, f"{layer}.post_attention_layernorm")
            gate, up = (weights[f"{layer}.mlp.{name}_proj.weight"] @ inner for name in ("gate", "up"))
            after.append(state + weights[f"{layer}.mlp.down_proj.weight"] @ (torch.nn.functional.silu(gate) * up))
        states = after
    return torch.stack([weights["lm_head.weight"] @ norm(state, "model.norm") for state in states])
