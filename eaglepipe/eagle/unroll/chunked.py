"""The TTT unroll in chunks of slots, for rows whose activations would not fit; same losses and gradients.

Step 0's keys and values come first, in chunks that are computed again in the backward. Then each chunk takes all its
steps, and its gradients are finished before the next begins: what grows with a row are aux states, keys, and one state
a slot. Processes that share a row gather its keys, once a layer, as the all-gather form of ring attention does: the
steps read the same keys, which a ring would send round at each of them.

C slots whose keys this process computes, G those of all processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.kernels.one_backward import scaled, take_gradients
from eaglepipe.eagle.layers.fused_ops import rms_norm
from eaglepipe.eagle.layers.rope import Rotary
from eaglepipe.eagle.sequence_share import SequenceGroup, gather_rows
from eaglepipe.eagle.unroll.chunk_plan import ChunkedPlan, ContextChunk, SlotChunk
from eaglepipe.eagle.unroll.head_result import TargetSlice, head_result
from eaglepipe.eagle.unroll.interface import LossSettings, TrainerInputs, UnrollResult
from eaglepipe.eagle.unroll.layer_steps import (
    DraftLayer,
    LayerRows,
    attend,
    embed,
    first_layer,
    keep_columns,
    keys_and_values,
    pick,
    plain_layers,
    run_layer,
)


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What a chunk's steps read of other slots, and the states that its own ones start from."""

    states: torch.Tensor  # [C, H], input of the last layer at step 0
    keys: tuple[torch.Tensor, ...]  # of each layer, [G, kv heads, d]
    values: tuple[torch.Tensor, ...]


def unroll_chunked(
    draft: LlamaEagle3DraftModel,
    inputs: TrainerInputs,
    settings: LossSettings,
    plan: ChunkedPlan,
    *,
    head_chunk_rows: int | None,
    group: SequenceGroup | None = None,
) -> UnrollResult:
    """Unroll K = len(settings.step_weights) steps as planned; `group` if processes share the rows."""
    run = _Run(draft, inputs, plan)
    context = run.context(group)
    results: list[UnrollResult] = []

    def chunk_loss(number: int, states: torch.Tensor, *keys_values: torch.Tensor) -> torch.Tensor:
        depth = len(keys_values) // 2
        read = _Context(states=states, keys=keys_values[:depth], values=keys_values[depth:])
        chunk = plan.chunks[number]
        head_inputs = run.head_inputs(chunk, read)
        result = head_result(
            draft,
            head_inputs,
            _targets(inputs, chunk),
            settings=settings,
            steps=chunk.steps,
            batch=inputs.batch,
            chunk_rows=head_chunk_rows,
        )
        results.append(replace(result, loss=result.loss.detach()))
        return result.loss

    parameters = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    tensors = (context.states, *context.keys, *context.values)
    loss = _ChunkLosses.apply(
        chunk_loss, len(plan.chunks), torch.is_grad_enabled(), len(parameters), *parameters, *tensors
    )
    return replace(_summed(results), loss=loss)


def _targets(inputs: TrainerInputs, chunk: SlotChunk) -> TargetSlice:
    rows = slice(chunk.first_target, chunk.end_target)
    mass = None if inputs.draft_mass is None else inputs.draft_mass.flatten()[rows]
    return TargetSlice(rows=inputs.target_rows(rows), draft_mass=mass)


def _summed(results: Sequence[UnrollResult]) -> UnrollResult:
    values = {field.name: [getattr(result, field.name) for result in results] for field in fields(UnrollResult)}
    return UnrollResult(**{name: torch.stack(parts).sum(0) for name, parts in values.items()})


class _Run:
    """A draft over one batch."""

    def __init__(self, draft: LlamaEagle3DraftModel, inputs: TrainerInputs, plan: ChunkedPlan) -> None:
        self._draft, self._inputs, self._plan = draft, inputs, plan
        self._ids = inputs.batch.input_ids.flatten()
        self._positions = inputs.batch.position_ids.flatten()
        self._longest = inputs.batch.position_ids.max() + 1
        self._recomputes = len(plan.chunks) > 1 and draft.training and torch.is_grad_enabled()

    def context(self, group: SequenceGroup | None) -> _Context:
        """Compute step 0 of all slots up to the input of the last layer, and its keys and values in all layers."""
        aux, plan = self._inputs.aux_rows, self._plan
        states = [self._saving(self._project, aux, plan.aux_rows[chunk.rows]) for chunk in plan.context]
        keys, values = [], []
        for index in range(len(self._draft.model.layers)):
            parts = [
                self._saving(self._context_keys, index, part, chunk)
                for part, chunk in zip(states, plan.context, strict=True)
            ]
            key, value = self._gathered(torch.cat(parts), group).unbind(1)
            keys.append(key)
            values.append(value)
            if index + 1 < len(self._draft.model.layers):
                states = [
                    self._saving(self._context_states, index, part, chunk, key, value)
                    for part, chunk in zip(states, plan.context, strict=True)
                ]
        return _Context(states=torch.cat(states), keys=tuple(keys), values=tuple(values))

    def head_inputs(self, chunk: SlotChunk, context: _Context) -> list[torch.Tensor]:
        """Take all steps of a chunk; returns the normed states [r, H] of each step's loss rows."""
        draft = self._draft
        fused, *deeper = plain_layers(draft)
        embeds = embed(draft, self._ids[chunk.tokens], context.states.dtype)
        layers = [first_layer(fused, embeds, embeds), *deeper]
        for layer, key, value in zip(layers, context.keys, context.values, strict=True):
            layer.keys.append(key)
            layer.values.append(value)
        states, found = pick(context.states, chunk.active), []
        for index, step in enumerate(chunk.steps):
            if step.kept is not None:
                states = states.index_select(0, step.kept)
                for layer in layers:
                    keep_columns(layer, step.kept)
            rotary = self._rotary(step.slots, index)
            plain = LayerRows(spans=step.spans, query_rotary=rotary, key_rotary=rotary)
            fused_rows = replace(plain, query_offsets=step.sources, key_value_offsets=step.sources)
            if index == 0:
                last, rows = layers[-1], plain if deeper else fused_rows
                normed = rms_norm(states, last.state_norm)
                states = attend(last, states, normed, rows, keys=tuple(last.keys), values=tuple(last.values))
            else:
                for layer, rows in zip(layers, [fused_rows, *[plain] * len(deeper)], strict=True):
                    states = run_layer(draft, layer, states, rows)
            states = rms_norm(states, draft.model.norm) if draft.config.norm_output else states
            loss_states = pick(states, step.rows)
            found.append(loss_states if draft.config.norm_output else rms_norm(loss_states, draft.model.norm))
        return found

    def _saving(self, function: Callable[..., Any], *arguments: Any) -> torch.Tensor:
        """Call a function; if there are several chunks, its activations are computed again in the backward."""
        result: torch.Tensor
        if self._recomputes:
            result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            result = function(*arguments)
        return result

    def _project(self, aux: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._draft.project_hidden_states(pick(aux, rows))

    def _context_layer(self, index: int, chunk: ContextChunk, dtype: torch.dtype, *, queries: bool) -> DraftLayer:
        layer = plain_layers(self._draft)[index]
        if index > 0:
            return layer
        embeds = embed(self._draft, self._ids[self._plan.cached[chunk.rows]], dtype)
        return first_layer(layer, None, embeds) if queries else first_layer(layer, embeds, None)

    def _context_rows(self, chunk: ContextChunk) -> LayerRows:
        rotary = self._rotary(self._plan.cached[chunk.rows], 0)
        return LayerRows(spans=chunk.spans, query_rotary=rotary, key_rotary=rotary)

    def _context_keys(self, index: int, states: torch.Tensor, chunk: ContextChunk) -> torch.Tensor:
        """Return keys and values [rows, 2, kv heads, d]."""
        layer = self._context_layer(index, chunk, states.dtype, queries=False)
        rows = self._context_rows(chunk)
        return torch.stack(keys_and_values(layer, rms_norm(states, layer.state_norm), rows), dim=1)

    def _context_states(
        self, index: int, states: torch.Tensor, chunk: ContextChunk, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        layer = self._context_layer(index, chunk, states.dtype, queries=True)
        normed = rms_norm(states, layer.state_norm)
        return attend(layer, states, normed, self._context_rows(chunk), keys=(key,), values=(value,))

    def _gathered(self, rows: torch.Tensor, group: SequenceGroup | None) -> torch.Tensor:
        """From rows [C, ...] of each process to [G, ...], in the order of the slots."""
        if self._plan.gathered is None or group is None:
            return rows
        padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, self._plan.most_cached - len(rows)))
        return gather_rows(padded, group).index_select(0, self._plan.gathered)

    def _rotary(self, slots: torch.Tensor, step: int) -> Rotary:
        cos, sin = self._draft.model.rotary_emb(self._positions[slots] + step, longest=self._longest)
        return cos[:, None], sin[:, None]


class _ChunkLosses(torch.autograd.Function):
    """The sum of the chunks' losses, whose gradients are finished one chunk after the other, in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        chunk_loss: Callable[..., torch.Tensor],
        num_chunks: int,
        wants_gradient: bool,
        num_parameters: int,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        needed = [wants_gradient and needs for needs in ctx.needs_input_grad[4:]]
        parameters, read = tensors[:num_parameters], tensors[num_parameters:]
        own = [
            tensor.detach().requires_grad_(needs) for tensor, needs in zip(read, needed[num_parameters:], strict=True)
        ]
        sums: list[torch.Tensor | None] = [None] * len(tensors)
        wanted = [index for index, needs in enumerate(needed) if needs]
        total = tensors[0].new_zeros((), dtype=torch.float32)
        for number in range(num_chunks):
            with torch.set_grad_enabled(wants_gradient):
                loss = chunk_loss(number, *own)
            total += loss.detach()
            if wanted and loss.requires_grad:
                sources = [(*parameters, *own)[index] for index in wanted]
                _add_gradients(sums, wanted, torch.autograd.grad(loss, sources, allow_unused=True))
        ctx.gradients = [
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(sums, tensors, strict=True)
        ]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, None, *(scaled(gradient, grads[0]) for gradient in take_gradients(ctx))


def _add_gradients(
    sums: list[torch.Tensor | None], wanted: Sequence[int], gradients: Sequence[torch.Tensor | None]
) -> None:
    """Add in float32 at least."""
    for index, gradient in zip(wanted, gradients, strict=True):
        if gradient is None:
            continue
        total, wide = sums[index], torch.promote_types(gradient.dtype, torch.float32)
        sums[index] = gradient.to(wide) if total is None else total.add_(gradient)
