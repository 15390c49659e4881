"""The TTT unroll over the slots that a loss depends on; same losses and gradients as the reference.

Three exact savings: queries, MLP and later steps run for active slots only; the embedding's half of the fused
projections is computed once, since a later step reads the same tokens, a slot further; and the head runs once, over the
loss rows of all steps.
"""

from dataclasses import replace

import torch

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.layers.fused_ops import rms_norm
from eaglepipe.eagle.layers.rope import Rotary
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.head_result import TargetSlice, head_result
from eaglepipe.eagle.unroll.interface import LossSettings, TrainerInputs, UnrollResult
from eaglepipe.eagle.unroll.layer_steps import (
    LayerRows,
    embed,
    first_layer,
    keep_columns,
    pick,
    plain_layers,
    run_layer,
)
from eaglepipe.eagle.unroll.slot_plan import UnrollPlan


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
    states = draft.project_hidden_states(pick(aux, plan.cached))
    fused, *deeper = plain_layers(draft)
    embeds = embed(draft, inputs.batch.input_ids.flatten()[plan.cached], states.dtype)
    layers = [first_layer(fused, embeds, embeds if deeper else pick(embeds, plan.active)), *deeper]
    head_inputs = []
    for index, step in enumerate(plan.steps):
        if step.kept is not None:
            states = states.index_select(0, step.kept)
            for layer in layers:
                keep_columns(layer, step.kept)
        for layer, rows in zip(layers, _layer_rows(draft, inputs.batch, plan, index), strict=True):
            states = run_layer(draft, layer, states, rows)
        states = rms_norm(states, draft.model.norm) if draft.config.norm_output else states
        loss_states = pick(states, step.rows)
        head_inputs.append(loss_states if draft.config.norm_output else rms_norm(loss_states, draft.model.norm))
    targets = TargetSlice(rows=inputs.target_rows(), draft_mass=inputs.draft_mass)
    return head_result(
        draft,
        head_inputs,
        targets,
        settings=settings,
        steps=plan.steps,
        batch=inputs.batch,
        chunk_rows=head_chunk_rows,
    )


def _layer_rows(draft: LlamaEagle3DraftModel, batch: PackedBatch, plan: UnrollPlan, index: int) -> list[LayerRows]:
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
        inner = LayerRows(spans=plan.documents, query_rotary=cached, key_rotary=cached)
        last = replace(inner, spans=step.spans, query_rotary=active, queries=plan.active)
        return [*[inner] * (depth - 1), last]
    sources = plan.active[step.sources]
    plain = LayerRows(spans=step.spans, query_rotary=active, key_rotary=active)
    fused = replace(plain, query_offsets=sources if depth > 1 else step.sources, key_value_offsets=sources)
    return [fused, *[plain] * (depth - 1)]
