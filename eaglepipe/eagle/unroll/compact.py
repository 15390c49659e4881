"""The TTT unroll over the slots that a loss depends on; same losses and gradients as the reference.

Three exact savings: queries, MLP and later steps run for active slots only; the embedding's half of the fused
projections is computed once, since a later step reads the same tokens, a slot further; and the head runs once, over the
loss rows of all steps.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.kernels.fused_head import HeadLoss, fused_head_loss
from eaglepipe.eagle.kernels.fused_lk import lk_head_loss
from eaglepipe.eagle.layers.blocks import Eagle3LlamaRMSNorm, norm_heads
from eaglepipe.eagle.layers.fused_ops import rms_norm, rotate, swiglu
from eaglepipe.eagle.layers.rope import Rotary
from eaglepipe.eagle.layers.windows import layer_windows
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.attention_spans import span_attention
from eaglepipe.eagle.unroll.interface import LossSettings, TrainerInputs, UnrollResult
from eaglepipe.eagle.unroll.slot_plan import StepSpans, UnrollPlan


@dataclass(frozen=True, kw_only=True)
class _Layer:
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
class _LayerRows:
    """The rows that one layer reads in one step; None stands for all rows, in order."""

    spans: StepSpans
    query_rotary: Rotary
    key_rotary: Rotary
    queries: torch.Tensor | None = None  # among the states
    query_offsets: torch.Tensor | None = None
    key_value_offsets: torch.Tensor | None = None


def unroll_compact(
    draft: LlamaEagle3DraftModel,
    inputs: TrainerInputs,
    settings: LossSettings,
    plan: UnrollPlan,
    *,
    head_chunk_rows: int | None,
) -> UnrollResult:
    """Unroll K = len(settings.step_weights) steps as planned."""
    aux = inputs.aux.flatten(0, 1)
    states = draft.project_hidden_states(_pick(aux, plan.cached))
    layers = _split_layers(draft, inputs.batch.input_ids.flatten()[plan.cached], plan.active, states.dtype)
    head_inputs = []
    for index, step in enumerate(plan.steps):
        if step.kept is not None:
            states = states.index_select(0, step.kept)
            for layer in layers:
                _keep_columns(layer, step.kept)
        for layer, rows in zip(layers, _layer_rows(draft, inputs.batch, plan, index), strict=True):
            states = _run_layer(draft, layer, states, rows)
        states = rms_norm(states, draft.model.norm) if draft.config.norm_output else states
        loss_states = _pick(states, step.rows)
        head_inputs.append(loss_states if draft.config.norm_output else rms_norm(loss_states, draft.model.norm))
    head, alphas = _head_loss(draft, torch.cat(head_inputs), inputs, settings, plan, chunk_rows=head_chunk_rows)
    return _count(inputs, plan, head, alphas)


def _head_loss(
    draft: LlamaEagle3DraftModel,
    states: torch.Tensor,
    inputs: TrainerInputs,
    settings: LossSettings,
    plan: UnrollPlan,
    *,
    chunk_rows: int | None,
) -> tuple[HeadLoss, torch.Tensor | None]:
    """Return the losses of all steps' rows from their normed states [R, H], and each row's alpha [R] if LK."""
    rows_per_step = [len(step.rows) for step in plan.steps]
    weights = zip(settings.step_weights, rows_per_step, strict=True)
    arguments = (
        states,
        draft.lm_head.weight,
        inputs.target_rows(),
        torch.cat([step.row_targets for step in plan.steps]),
        torch.cat([weight.expand(count) for weight, count in weights]),
    )
    if not settings.loss.needs_mass:
        return fused_head_loss(*arguments, chunk_rows=chunk_rows), None
    assert inputs.draft_mass is not None
    return lk_head_loss(
        *arguments,
        draft_mass=inputs.draft_mass.flatten(),
        loss=settings.loss,
        rows_per_step=rows_per_step,
        mean_alphas=settings.mean_alphas,
        chunk_rows=chunk_rows,
    )


def _split_layers(
    draft: LlamaEagle3DraftModel, token_ids: torch.Tensor, active: torch.Tensor, dtype: torch.dtype
) -> list[_Layer]:
    windows = layer_windows(draft.config)
    fused, *deeper = map(_plain_layer, draft.model.layers, windows)
    width = draft.config.hidden_size
    embeds = rms_norm(draft.model.embed_tokens(token_ids).to(dtype), fused.state_norm)
    query_embeds = embeds if deeper else _pick(embeds, active)
    first = replace(
        fused,
        state_norm=fused.module.hidden_norm,
        query_weight=fused.query_weight[:, width:],
        key_value_weight=fused.key_value_weight[:, width:],
        query_offsets=F.linear(query_embeds, fused.query_weight[:, :width], fused.query_offsets),
        key_value_offsets=F.linear(embeds, fused.key_value_weight[:, :width], fused.key_value_offsets),
    )
    return [first, *deeper]


def _plain_layer(layer: Any, window: int | None) -> _Layer:
    query, key, value = layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
    return _Layer(
        module=layer,
        state_norm=layer.input_layernorm,
        query_weight=query.weight,
        key_value_weight=torch.cat((key.weight, value.weight)),
        query_offsets=query.bias,
        key_value_offsets=None if key.bias is None else torch.cat((key.bias, value.bias)),
        window=window,
    )


def _keep_columns(layer: _Layer, kept: torch.Tensor) -> None:
    for columns in (layer.keys, layer.values):
        columns[1:] = [column.index_select(0, kept) for column in columns[1:]]


def _layer_rows(draft: LlamaEagle3DraftModel, batch: PackedBatch, plan: UnrollPlan, index: int) -> list[_LayerRows]:
    """Return the rows of each layer in step `index`: only the last one can leave queries out of step 0."""
    depth, step = draft.config.num_hidden_layers, plan.steps[index]
    positions = batch.position_ids.flatten()
    longest = batch.position_ids.max() + 1

    def rotary(slots: torch.Tensor) -> Rotary:
        cos, sin = draft.model.rotary_emb(positions[slots] + index, longest=longest)
        return cos[:, None], sin[:, None]

    active = rotary(step.slots)
    if index == 0:
        cached = rotary(plan.cached)
        inner = _LayerRows(spans=plan.documents, query_rotary=cached, key_rotary=cached)
        last = replace(inner, spans=step.spans, query_rotary=active, queries=plan.active)
        return [*[inner] * (depth - 1), last]
    sources = plan.active[step.sources]
    plain = _LayerRows(spans=step.spans, query_rotary=active, key_rotary=active)
    fused = replace(plain, query_offsets=sources if depth > 1 else step.sources, key_value_offsets=sources)
    return [fused, *[plain] * (depth - 1)]


def _run_layer(draft: LlamaEagle3DraftModel, layer: _Layer, states: torch.Tensor, rows: _LayerRows) -> torch.Tensor:
    arguments = (layer, states, rows, tuple(layer.keys), tuple(layer.values))
    states, key, value = draft._run_draft_layer(_layer_step, arguments)
    layer.keys.append(key)
    layer.values.append(value)
    return states


def _layer_step(
    layer: _Layer,
    states: torch.Tensor,
    rows: _LayerRows,
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return new states [queries, H] from states [rows, H], and this step's keys and values [rows, kv heads, d]."""
    attention = layer.module.self_attn
    normed = rms_norm(states, layer.state_norm)
    residual = normed if getattr(layer.module, "norm_before_residual", False) else states
    key_values = _project(normed, layer.key_value_weight, layer.key_value_offsets, rows.key_value_offsets)
    key, value = key_values.unflatten(-1, (2, -1, attention.head_dim)).unbind(1)
    key = rotate(norm_heads(attention.k_norm, key), *rows.key_rotary)
    if rows.queries is not None:
        residual, normed = _pick(residual, rows.queries), _pick(normed, rows.queries)
    query = _project(normed, layer.query_weight, layer.query_offsets, rows.query_offsets)
    query = rotate(norm_heads(attention.q_norm, query.unflatten(-1, (-1, attention.head_dim))), *rows.query_rotary)
    attended = span_attention(query, (*keys, key), (*values, value), rows.spans, attention.scale, window=layer.window)
    states = residual + attention.o_proj(attended.flatten(1))
    mlp, inner = layer.module.mlp, rms_norm(states, layer.module.post_attention_layernorm)
    return states + mlp.down_proj(swiglu(mlp.gate_proj(inner), mlp.up_proj(inner))), key, value


def _pick(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `states[rows]` for ascending rows, none twice; all rows without a copy."""
    return states if len(rows) == len(states) else states.index_select(0, rows)


def _project(
    states: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None, rows: torch.Tensor | None
) -> torch.Tensor:
    if offsets is None:
        return F.linear(states, weight)
    return torch.addmm(offsets if rows is None else offsets.index_select(0, rows), states, weight.t())


@torch.no_grad()
def _count(inputs: TrainerInputs, plan: UnrollPlan, head: HeadLoss, alphas: torch.Tensor | None) -> UnrollResult:
    """Add up each step from its loss rows; a slot without a row at a step matches nothing and is not reached there."""
    targets = inputs.target_rows().top_tokens()
    rows_per_step = [len(step.rows) for step in plan.steps]
    unbroken = torch.ones_like(inputs.batch.position_mask).flatten()
    correct, hits = [], []
    for step, predicted in zip(plan.steps, head.predicted.split(rows_per_step), strict=True):
        matched = predicted == targets[step.row_targets]
        correct.append(matched.sum())
        unbroken = unbroken & torch.zeros_like(unbroken).index_copy_(0, step.row_slots, matched)
        hits.append(unbroken.sum())
    result = UnrollResult(
        loss=head.loss,
        loss_sums=torch.stack([losses.sum() for losses in head.row_losses.split(rows_per_step)]),
        correct=torch.stack(correct),
        hits=torch.stack(hits),
    )
    if alphas is None:
        return result
    reached, sums, sampled = torch.ones_like(unbroken, dtype=alphas.dtype), [], []
    for step, step_alphas in zip(plan.steps, alphas.split(rows_per_step), strict=True):
        reached = reached * torch.zeros_like(reached).index_copy_(0, step.row_slots, step_alphas)
        sums.append(step_alphas.sum())
        sampled.append(reached.sum())
    return replace(result, alpha_sums=torch.stack(sums), sampled_hits=torch.stack(sampled))
