"""The drafts that an EAGLE-3 trainer takes: the Llama draft, or any module with its three methods."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.layers.blocks import (
    Eagle3LlamaAttention,
    Eagle3LlamaDecoderLayer,
    Eagle3LlamaMLP,
    Eagle3LlamaPeagleLayer,
    Eagle3LlamaRMSNorm,
)
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.errors import DraftError

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Token ids [B, T] and carried state [B, T, H] -> the next state."""

_METHODS = ("project_hidden_states", "forward", "compute_logits")
_METHODS_OF_COMPACT = ("forward", "head_input", "compute_logits")
_STATE_NAMES = ("projected_hidden_states", "hidden_states")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_methods(draft: Any) -> None:
    """Check that a draft has the methods of an unroll.

    Raises:
        DraftError: naming those that it has not.
    """
    if absent := [name for name in _METHODS if not callable(getattr(draft, name, None))]:
        raise DraftError(f"a {type(draft).__name__} is no EAGLE-3 draft: it has no {', '.join(absent)}")


def is_plain(draft: Any) -> bool:
    """Return whether a draft is the Llama draft with its own layers, whose weights the compact unroll reads directly.

    A method that was overridden, or a part that was replaced (an adapter, a quantised projection), must be called.
    """
    if not isinstance(draft, LlamaEagle3DraftModel):
        return False
    for name in _METHODS_OF_COMPACT:
        if name in vars(draft) or getattr(type(draft), name) is not getattr(LlamaEagle3DraftModel, name):
            return False
    head: Any = draft.lm_head
    has_plain_head = _is(nn.Linear, head) and head.bias is None and _is_norm(draft.model.norm)
    return has_plain_head and all(_has_plain_parts(layer) for layer in draft.model.layers)


def _has_plain_parts(layer: Any) -> bool:
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if _is(Eagle3LlamaDecoderLayer, layer):
        norms.append(layer.hidden_norm)
    elif not _is(Eagle3LlamaPeagleLayer, layer):
        return False
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    blocks = _is(Eagle3LlamaAttention, attention) and _is(Eagle3LlamaMLP, layer.mlp)
    blocks = blocks and all(_is_norm(norm) or _is(nn.Identity, norm) for norm in (attention.q_norm, attention.k_norm))
    return blocks and all(map(_is_norm, norms)) and all(_is(nn.Linear, projection) for projection in projections)


def _is(kind: type[nn.Module], module: nn.Module) -> bool:
    return type(module) is kind and "forward" not in vars(module)


def _is_norm(module: nn.Module) -> bool:
    return _is(Eagle3LlamaRMSNorm, module)


def first_step(draft: Any, batch: PackedBatch) -> Step:
    """Return the draft as a function of what changes from step to step, its keys and values kept inside.

    A module of another class gets `attention_mask` [B, T], `position_ids`, `cache_hidden` (two lists, empty at step 0)
    and `seq_lens` as far as its forward has parameters of these names.

    Raises:
        DraftError: rows hold several documents, which a forward without `seq_lens` would let read each other.
    """
    if is_plain(draft):
        mask = batch.causal_mask()
        cache: list[list[torch.Tensor]] = [[] for _ in range(2 * len(draft.model.layers))]
        return lambda ids, state: draft(ids, state, mask, batch.position_ids, cache)
    arguments = {
        "attention_mask": batch.attention_mask.long(),
        "position_ids": batch.position_ids,
        "cache_hidden": [[], []],
        "seq_lens": batch.seq_lens,
    }
    parameters = inspect.signature(draft.forward).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    host_lengths = batch.on_host().seq_lens
    if "seq_lens" not in arguments and host_lengths is not None and bool(((host_lengths > 0).sum(1) > 1).any()):
        raise DraftError(
            f"the forward of {type(draft).__name__} takes no seq_lens, so packed documents would read each other; "
            "give one document a row"
        )
    return partial(_call, draft, parameters, arguments)


def _call(
    draft: Any,
    parameters: Mapping[str, inspect.Parameter],
    arguments: Mapping[str, Any],
    input_ids: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """Call a forward by the names of its parameters, else by their order, else by the names of the interface."""
    name = next((name for name in _STATE_NAMES if name in parameters), None)
    kinds = [parameter.kind for parameter in parameters.values()]
    in_order = inspect.Parameter.VAR_POSITIONAL in kinds or sum(kind in _POSITIONAL for kind in kinds) >= 2
    output: torch.Tensor
    if in_order and (name is None or "input_ids" not in parameters):
        output = draft(input_ids, state, **arguments)
    else:
        output = draft(**{"input_ids": input_ids, name or _STATE_NAMES[0]: state}, **arguments)
    return output
