"""One layer of the draft at one TTT step, over the rows that are computed: its weights split by their inputs.

The embedding's half of the fused projections is computed once: a later step reads the same tokens, a slot further.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.layers.blocks import Eagle3LlamaRMSNorm, norm_heads
from eaglepipe.eagle.layers.fused_ops import rms_norm, rotate, swiglu
from eaglepipe.eagle.layers.rope import Rotary
from eaglepipe.eagle.layers.windows import layer_windows
from eaglepipe.eagle.unroll.attention.spans import span_attention
from eaglepipe.eagle.unroll.span_tables import StepSpans


@dataclass(frozen=True, kw_only=True)
class DraftLayer:
    """One layer through the steps: its projections split by their inputs, and its keys and values so far.

    C cached slots; q and kv are the sizes of all query heads, and of all keys and values together.
    """

    module: Any
    state_norm: Eagle3LlamaRMSNorm
    query_weight: torch.Tensor  # [q, H], reads the normed state
    key_value_weight: torch.Tensor  # [kv, H]
    query_offsets: torch.Tensor | None  # of embeddings and biases, [step 0's queries, q] or [q]; None: 0
    key_value_offsets: torch.Tensor | None  # [C, kv] or [kv]
    window: int | None = None  # of its attention
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LayerRows:
    """The rows that one layer reads in one step; None stands for all rows, in order."""

    spans: StepSpans
    query_rotary: Rotary
    key_rotary: Rotary
    queries: torch.Tensor | None = None  # among the states
    query_offsets: torch.Tensor | None = None
    key_value_offsets: torch.Tensor | None = None


def plain_layers(draft: LlamaEagle3DraftModel) -> list[DraftLayer]:
    """Return all layers as they are, the first one with weights for embedding and state together."""
    return list(map(_plain_layer, draft.model.layers, layer_windows(draft.config)))


def embed(draft: LlamaEagle3DraftModel, token_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the normed embeddings [n, H] that the first layer reads."""
    layer: Any = draft.model.layers[0]
    return rms_norm(draft.model.embed_tokens(token_ids).to(dtype), layer.input_layernorm)


def first_layer(fused: DraftLayer, embeds: torch.Tensor | None, query_embeds: torch.Tensor | None) -> DraftLayer:
    """Return the first layer with the offsets of keys and values, and of queries, from normed embeddings [n, H]."""
    width = fused.module.hidden_norm.weight.shape[0]
    layer = replace(
        fused,
        state_norm=fused.module.hidden_norm,
        query_weight=fused.query_weight[:, width:],
        key_value_weight=fused.key_value_weight[:, width:],
    )
    if query_embeds is not None:
        offsets = F.linear(query_embeds, fused.query_weight[:, :width], fused.query_offsets)
        layer = replace(layer, query_offsets=offsets)
    if embeds is not None:
        offsets = F.linear(embeds, fused.key_value_weight[:, :width], fused.key_value_offsets)
        layer = replace(layer, key_value_offsets=offsets)
    return layer


def _plain_layer(layer: Any, window: int | None) -> DraftLayer:
    query, key, value = layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
    return DraftLayer(
        module=layer,
        state_norm=layer.input_layernorm,
        query_weight=query.weight,
        key_value_weight=torch.cat((key.weight, value.weight)),
        query_offsets=query.bias,
        key_value_offsets=None if key.bias is None else torch.cat((key.bias, value.bias)),
        window=window,
    )


def keep_columns(layer: DraftLayer, kept: torch.Tensor) -> None:
    for columns in (layer.keys, layer.values):
        columns[1:] = [column.index_select(0, kept) for column in columns[1:]]


def run_layer(draft: LlamaEagle3DraftModel, layer: DraftLayer, states: torch.Tensor, rows: LayerRows) -> torch.Tensor:
    arguments = (layer, states, rows, tuple(layer.keys), tuple(layer.values))
    states, key, value = draft._run_draft_layer(_layer_step, arguments)
    layer.keys.append(key)
    layer.values.append(value)
    return states


def _layer_step(
    layer: DraftLayer,
    states: torch.Tensor,
    rows: LayerRows,
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return new states [queries, H] from states [rows, H], and this step's keys and values [rows, kv heads, d]."""
    normed = rms_norm(states, layer.state_norm)
    key, value = keys_and_values(layer, normed, rows)
    return attend(layer, states, normed, rows, keys=(*keys, key), values=(*values, value)), key, value


def keys_and_values(layer: DraftLayer, normed: torch.Tensor, rows: LayerRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values [rows, kv heads, d] of normed states [rows, H]."""
    attention = layer.module.self_attn
    key_values = _project(normed, layer.key_value_weight, layer.key_value_offsets, rows.key_value_offsets)
    key, value = key_values.unflatten(-1, (2, -1, attention.head_dim)).unbind(1)
    return rotate(norm_heads(attention.k_norm, key), *rows.key_rotary), value


def attend(
    layer: DraftLayer,
    states: torch.Tensor,
    normed: torch.Tensor,
    rows: LayerRows,
    *,
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """Return new states [queries, H] from states [rows, H], as they are and normed, and the keys that they read."""
    attention = layer.module.self_attn
    residual = normed if getattr(layer.module, "norm_before_residual", False) else states
    if rows.queries is not None:
        residual, normed = pick(residual, rows.queries), pick(normed, rows.queries)
    query = _project(normed, layer.query_weight, layer.query_offsets, rows.query_offsets)
    query = rotate(norm_heads(attention.q_norm, query.unflatten(-1, (-1, attention.head_dim))), *rows.query_rotary)
    attended = span_attention(query, keys, values, rows.spans, attention.scale, window=layer.window)
    states = residual + attention.o_proj(attended.flatten(1))
    mlp, inner = layer.module.mlp, rms_norm(states, layer.module.post_attention_layernorm)
    return states + mlp.down_proj(swiglu(mlp.gate_proj(inner), mlp.up_proj(inner)))


def pick(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `states[rows]` for ascending rows, none twice; all rows without a copy."""
    return states if len(rows) == len(states) else states.index_select(0, rows)


def _project(
    states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None, rows: torch.Tensor | None
) -> torch.Tensor:
    if offsets is None:
        return F.linear(states, weight)
    return torch.addmm(offsets if rows is None else offsets.index_select(0, rows), states, weight.t())
