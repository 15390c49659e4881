"""Why a served draft may lose acceptance: how its folder differs from the run's own export, and the shape of the loss.

No engine reports a missing tensor or a wrong layer id: the draft is only accepted less.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.folder import StoredDraft, draft_weight_files
from eaglepipe.drafts.reading import (
    AUX_IDS,
    NORM_FLAGS,
    layer_config,
    read_aux,
    read_mask_token,
    read_norm_flag,
    read_rope,
)
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.served.gap import Gap
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.tensors import CONFIG_FILE, load_tensors

_LAYER_FIELDS = (
    "rms_norm_eps",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
)
_OPTIONAL = {"t2d", "embed_tokens.weight"}
_TOLERANCE = 0.02  # relative: two 16-bit formats of one weight
_SMALL = 0.1  # of the real acceptance at a position


def likely_causes(gap: Gap, judged: Path, own: Path, boundaries: tuple[int, ...] | None) -> tuple[str, ...]:
    """Return sentences on the likely causes of a gap, the most telling first.

    Args:
        judged: the folder that was served.
        own: the run's own export, which may be the same.
        boundaries: aux layers that the run's draft was trained on; None if it reads none.
    """
    return _faults(judged, own, boundaries) or (_by_shape(gap),)


def with_causes(error: EaglepipeError, judged: Path, own: Path, boundaries: tuple[int, ...] | None) -> EaglepipeError:
    """Return the error of an engine that served a folder, with what is wrong with that: ids beyond the vocabulary, say.

    Args: as `likely_causes`.
    """
    causes = () if judged == own else _faults(judged, own, boundaries)
    return type(error)("\n  likely cause: ".join((str(error), *causes)))


def _faults(judged: Path, own: Path, boundaries: tuple[int, ...] | None) -> tuple[str, ...]:
    try:
        return tuple(folder_differences(_read(judged), _read(own), boundaries))
    except EaglepipeError as error:
        return (f"the folder cannot be read here: {error}",)


def folder_differences(judged: StoredDraft, own: StoredDraft, boundaries: tuple[int, ...] | None) -> Iterator[str]:
    """Yield what an engine reads in one folder and not in the other, whatever their layouts."""
    if boundaries is not None:
        yield from _aux_layers(judged.config, own.config, boundaries)
    for name in NORM_FLAGS:
        flags = read_norm_flag(judged.config, name), read_norm_flag(own.config, name)
        if flags[0] != flags[1]:
            yield f"config.json has {name} {_json(flags[0])}, the draft was trained with {_json(flags[1])}"
    ropes = read_rope(judged.config), read_rope(own.config)
    if ropes[0] != ropes[1]:
        yield f"config.json has the rotary embedding {ropes[0]}, the draft was trained with {ropes[1]}"
    for name in _LAYER_FIELDS:
        values = layer_config(judged.config).get(name), layer_config(own.config).get(name)
        if values[0] != values[1] and values[0] is not None:
            yield f"config.json has {name} {values[0]}, the draft was trained with {values[1]}"
    masks = read_mask_token(judged.config), read_mask_token(own.config)
    if masks[0] != masks[1]:
        yield f"config.json has the mask token {masks[0]}, the draft was trained with {masks[1]}"
    yield from _tensors(judged.tensors, own.tensors)


def _aux_layers(judged: dict[str, Any], own: dict[str, Any], boundaries: tuple[int, ...]) -> Iterator[str]:
    top, nested = read_aux(judged)
    own_top, own_nested = read_aux(own)
    ids, own_ids = top or nested, own_top or own_nested
    if ids == own_ids:
        return
    if ids is None:
        yield f"config.json names no aux layers, so the engine takes its default ones, not {list(boundaries)}"
        return
    shift = {read - trained for read, trained in zip(ids, boundaries, strict=False)}
    off = f", all off by {shift.pop():+d}, as layer outputs are from boundaries" if len(shift) == 1 else ""
    yield f"{AUX_IDS} is {list(ids)}, the draft was trained on boundaries {list(boundaries)}{off}"


def _tensors(judged: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> Iterator[str]:
    for name, tensor in own.items():
        other = judged.get(name)
        if name == "t2d":
            continue
        if other is None:
            if name not in _OPTIONAL:
                yield f"the tensor {name} is missing, so the engine serves an untrained one"
        elif other.shape != tensor.shape:
            yield f"the tensor {name} has shape {list(other.shape)}, the draft's {list(tensor.shape)}"
        elif name == "d2t":
            if torch.equal(other.long(), tensor.long() + torch.arange(len(tensor))):
                yield "the tensor d2t holds target ids, and engines read offsets: target id - draft id"
            elif not torch.equal(other.long(), tensor.long()):
                yield "the tensor d2t maps draft ids to other tokens than the draft was trained for"
        elif _deviation(other, tensor) > _TOLERANCE:
            yield f"the tensor {name} has other values than the run's draft"
    for name in judged.keys() - own.keys() - _OPTIONAL:
        yield f"the tensor {name} is none of the run's draft"


def _by_shape(gap: Gap) -> str:
    served, real = gap.served.acceptance_by_position, gap.real.acceptance_by_position
    if not real or not served:
        return "not known"
    same = "the folder holds the run's weights and settings"
    if served[0] <= _SMALL * real[0]:
        return f"{same}, and not even first guesses are accepted: the engine reads it in another way, or another target"
    if abs(served[0] - real[0]) <= _SMALL * real[0]:
        return (
            f"{same}, and first guesses are accepted as here, later ones less: look at the state that a guess hands "
            "to the next (norm_output, positions) in this version of the engine"
        )
    return (
        f"{same}, so look at the target: the engine's precision, quantisation or rotary scaling may give other states "
        "than the draft was trained on"
    )


def _read(folder: Path) -> StoredDraft:
    """Read a draft as it is, also one that was changed after it was published."""
    tensors: dict[str, torch.Tensor] = {}
    for path in draft_weight_files(folder):
        tensors |= load_tensors(path)
    return StoredDraft(config=read_json_object(folder / CONFIG_FILE), raw_tensors=tensors)


def _deviation(tensor: torch.Tensor, other: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(tensor.float() - other.float())
    return float(difference / torch.linalg.vector_norm(other.float()).clamp(min=1e-12))


def _json(value: bool) -> str:
    return str(value).lower()
