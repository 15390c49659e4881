"""Serves drafts of blocks (DFlash, DSpark) with SGLang's own classes."""

from pathlib import Path
from typing import Any

import torch

from tests.drafts.block_drafts import recorded, states_of, target_of
from tests.export.made_drafts import make_draft
from tests.export.sglang_own.drafts import MODE, build
from tests.export.sglang_own.modules import Embedding

HEADS = {"markov_rank": 4, "enable_confidence_head": True, "confidence_head_with_markov": True}
BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dflash": ("dflash", {"num_hidden_layers": 2}),
    "dspark": ("dspark", {"num_hidden_layers": 2, **HEADS}),
    "dspark, gated": ("dspark", {"num_hidden_layers": 2, **HEADS, "markov_head_type": "gated"}),
    "dspark, no forecast": ("dspark", {"num_hidden_layers": 1, "markov_rank": 4, "enable_confidence_head": False}),
}  # fmt: skip
"""Family and settings of each draft, without windows."""


def make_block(name: str) -> Any:
    family, settings = BLOCKS[name]
    return make_draft(target_of("dflash"), family, scale=0.1, mask_token_id=47, **settings)


@torch.no_grad()
def our_block_logits(draft: Any) -> torch.Tensor:
    """Logits [anchors, block, V] of the blocks that are recorded beside a published draft."""
    io = recorded("dflash")
    states = states_of(draft, io)
    logits: torch.Tensor = draft.compute_logits(states)
    if hasattr(draft, "markov_bias"):
        previous = io["ids"][0, io["anchors"][:, None] + torch.arange(states.shape[1])]
        logits = logits + draft.markov_bias(states, previous)
    return logits


class Block:
    """A batch of one block behind its text."""

    forward_mode = MODE

    def __init__(self, positions: torch.Tensor, text: torch.Tensor) -> None:
        self.positions, self.text = positions, text
        self.context: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = (torch.cat(pair) for pair in zip(self.context[layer.layer_id], (key, value), strict=True))
        keys, values = (x.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1) for x in (keys, values))
        slots, rows = torch.cat([self.text, self.positions]), self.positions[:, None]
        readable = torch.ones(len(query), len(slots), dtype=torch.bool)
        if layer.attn_type == "decoder":
            readable &= slots <= rows
        assert layer.sliding_window_size < 0, "windows are not compared here"
        scores = torch.einsum("qhd,khd->hqk", query, keys) * layer.scaling
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~readable, float("-inf")).softmax(-1), values)


def mask_token_of(config: Any) -> int:
    mask: int = config.mask_token_id if hasattr(config, "mask_token_id") else config.dflash_config["mask_token_id"]
    return mask


@torch.no_grad()
def serve_blocks(folder: Path, embeddings: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Return the logits of the recorded blocks, and the parameters that kept their initial values.

    Raises whatever SGLang raises.
    """
    config, model, initial = build(folder)
    io = recorded("dflash")
    anchors, positions, width = io["anchors"], io["positions"][0], io["logits"].shape[1]
    embed, lm_head = Embedding(*embeddings.shape), Embedding(*head.shape)
    embed.weight.data, lm_head.weight.data = embeddings, head
    logits = []
    for anchor in anchors.tolist():
        start = anchor - int(positions[anchor])
        batch = Block(positions[anchor] + torch.arange(width), positions[start:anchor])
        context = model.project_target_hidden(io["aux"][0, start:anchor])
        for index, layer in enumerate(model.layers):
            attention = layer.self_attn
            key, value = attention.kv_proj_only(model.prepare_context_hidden_for_kv(layer, context))
            key = attention.apply_k_rope(batch.text, attention.apply_k_norm(key))
            heads = -1, attention.head_dim
            batch.context[index] = key.unflatten(-1, heads), value.unflatten(-1, heads)
        ids = torch.full((width,), mask_token_of(config))
        ids[0] = io["ids"][0, anchor]
        states = model(ids, batch.positions, batch, input_embeds=embed(ids)).hidden_states
        block = states @ head.T
        if hasattr(model, "markov_head"):
            model.attach_shared_modules(embed_tokens=embed, lm_head=lm_head)
            previous = io["ids"][0, anchor : anchor + width]
            block = block + model.markov_head.step_bias(previous, hidden_states=states, state=None)[0]
        logits.append(block)
    return torch.stack(logits), initial
