"""The parts of any causal LM: its decoder, the layers inside, the final norm, and the form of its head.

Shapes: n decoder layers, Ht hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from eaglepipe.errors import TargetError
from eaglepipe.families import default_boundaries
from eaglepipe.target_head import HeadSpec

_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm", "embedding_norm")


def find_decoder(model: PreTrainedModel) -> nn.Module:
    """Return the module that turns input ids into the lm_head's input.

    Raises:
        TargetError: the model is not made of a decoder and a head.
    """
    decoder = model.get_decoder()
    if decoder is model:  # some architectures name their decoder otherwise than `get_decoder` looks for it
        decoder = next((child for child in model.children() if isinstance(child, PreTrainedModel)), None)
    if decoder is None:
        raise TargetError(f"{type(model).__name__}: no decoder inside that runs without the lm_head")
    return decoder


def find_layers(decoder: nn.Module, num_layers: int) -> nn.ModuleList:
    """Return the decoder layers in the order they run.

    Raises:
        TargetError: no list of exactly `num_layers` modules directly inside the decoder.
    """
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == num_layers]
    named = [child for child in lists if child in (getattr(decoder, name, None) for name in ("layers", "h", "blocks"))]
    if not lists:
        raise TargetError(f"{type(decoder).__name__}: it has no list of {num_layers} decoder layers")
    return (named or lists)[0]


def find_final_norm(decoder: nn.Module) -> nn.Module | None:
    """Return the module of a decoder that is named as a final norm."""
    norms = (getattr(decoder, name, None) for name in _FINAL_NORMS)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def final_norm_weight(decoder: nn.Module, hidden_size: int) -> torch.Tensor:
    """Return the final norm's scale [Ht], in the form y = x / rms(x) * scale; ones if the norm has none."""
    norm = find_final_norm(decoder)
    weight = getattr(norm, "weight", None)
    if norm is None or weight is None or weight.shape != (hidden_size,):
        return torch.ones(hidden_size)
    weight = weight.detach()
    if isinstance(norm, nn.LayerNorm):
        return weight
    with torch.no_grad():
        response = norm(torch.ones_like(weight)[None]).flatten().float()
    stored_minus_one = torch.dist(response, weight.float() + 1.0) < torch.dist(response, weight.float())
    return (weight.float() + 1.0).to(weight.dtype) if bool(stored_minus_one) else weight


def head_spec_candidates(config: Any) -> list[HeadSpec]:
    """List the transforms that the architecture may apply to the lm_head's output, likeliest first.

    Architectures read the same config field differently (`logits_scaling` divides in one and multiplies in another, a
    soft cap may be ignored), so the caller lets the model itself decide.
    """
    scales = [1.0]
    if _is_number(getattr(config, "logits_scaling", None)):
        scales = [1.0 / config.logits_scaling, float(config.logits_scaling), 1.0]
    for field in ("logit_scale", "lm_head_multiplier"):
        if _is_number(getattr(config, field, None)):
            scales = [float(getattr(config, field)), 1.0]
    cap: Any = getattr(config, "final_logit_softcapping", None)
    caps = [float(cap), None] if _is_number(cap) and cap > 0 else [None]
    return [HeadSpec(logit_scale=scale, soft_cap=soft_cap) for soft_cap in caps for scale in scales]


def rope_kinds(config: PretrainedConfig) -> dict[str, int]:
    """Return the rope types whose frequencies change with the batch's length, each with the length at which they do.

    Raises:
        TargetError: one has no such length.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return {}
    groups = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    lengths: dict[str, int] = {}
    for group in groups:
        kind = group.get("rope_type")
        if kind in ("longrope", "dynamic"):
            original = group.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
            if not isinstance(original, int | float) or not 0 < original < 2**63:
                raise TargetError(f"rope_parameters of the target's config: {kind} of original length {original!r:.80}")
            lengths[kind] = min(int(original), lengths.get(kind, int(original)))
    return lengths


def default_aux_layer_ids(num_layers: int) -> tuple[int, ...]:
    """Return the boundaries [2, n//2, n-3], or [1, n//2, n-1] of a target too shallow for these to be distinct.

    Raises:
        TargetError: fewer than 4 layers, of which no three boundaries are early, middle and late.
    """
    ids = default_boundaries(num_layers)
    if 2 < ids[1] < ids[2]:
        return ids
    if num_layers >= 4:
        return 1, num_layers // 2, num_layers - 1
    raise TargetError(
        f"the target has {num_layers} layers, too shallow for three default aux layers; set cache.aux_layer_ids to "
        f"distinct boundaries in 1..{num_layers}"
    )


def validate_aux_layer_ids(ids: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the ids as a tuple, if they are distinct boundaries 1..n in ascending order.

    Raises:
        TargetError: empty, out of range, repeated or not ascending; names the ids and the depth.
    """
    where = f"cache.aux_layer_ids {list(ids)}: the target has {num_layers} layers"
    if not ids:
        raise TargetError(f"{where}; give at least one boundary in 1..{num_layers}")
    outside = [layer for layer in ids if not 1 <= layer <= num_layers]
    if outside:
        raise TargetError(f"{where}, so boundaries are 1..{num_layers}, and {outside} are not")
    if len(set(ids)) != len(ids):
        raise TargetError(f"{where}; each boundary may be given once")
    if list(ids) != sorted(ids):
        raise TargetError(f"{where}; boundaries are given in ascending order")
    return tuple(ids)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
