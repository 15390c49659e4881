"""Which settings belong to which objective: one that would be ignored is refused, not passed over."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

_EAGLE1 = ("eagle1", "eagle2")
_EAGLE3_DRAFT = ("eagle3", "peagle")
SERVES: dict[str, tuple[str, ...]] = {
    "train.ttt_steps": ("eagle3", *_EAGLE1),
    "train.step_decay": ("eagle3",),
    "train.loss": ("eagle3",),
    "train.lk_scale": ("eagle3",),
    "train.lk_decay": ("eagle3",),
    "train.eval_depth": ("eagle3",),
    "train.feature_noise": _EAGLE1,
    "train.peagle_depths": ("peagle",),
    "train.cod_ratio": ("peagle",),
    "train.cod_min_ratio": ("peagle",),
    "train.sequence_partitions": ("peagle",),
    "draft.mask_token_id": ("peagle",),
    "draft.aux_layer_ids": _EAGLE3_DRAFT,
    "draft.fc_norm": _EAGLE3_DRAFT,
    "draft.norm_output": _EAGLE3_DRAFT,
    "draft.lm_head_init": _EAGLE3_DRAFT,
}
"""The objectives that read a setting; those that are not listed serve all."""
OF_LAMBDA = ("train.lk_scale", "train.lk_decay")
"""Settings that `train.loss: lambda` alone reads."""


def check_objective_settings(objective: str, sections: Mapping[str, BaseModel]) -> None:
    """Refuse settings, other than defaults, that this objective would ignore.

    Raises:
        ValueError: naming each of them.
    """
    mistakes = [
        f"{name} is {value!r}, which train.objective {objective} ignores (it serves {', '.join(objectives)}); remove it"
        for name, objectives in SERVES.items()
        if objective not in objectives and (value := _changed(sections, name)) is not None
    ]
    if objective in _EAGLE1 and sections["train"].model_dump(include={"caches"})["caches"] is None:
        mistakes += _cache_lacks(objective, sections["cache"], sections["vocab"])
    loss = getattr(sections["train"], "loss", None)
    mistakes += [
        f"{name} is {value!r}, which train.loss {loss} ignores (it serves lambda); remove it"
        for name in OF_LAMBDA
        if loss != "lambda" and objective in SERVES[name] and (value := _changed(sections, name)) is not None
    ]
    if mistakes:
        raise ValueError("; ".join(mistakes))


def _cache_lacks(objective: str, cache: Any, vocab: Any) -> list[str]:
    """What EAGLE-1 would miss in the cache that the recipe makes: better known before it is made."""
    needs = {
        "cache.last_hidden=all (and cache.supervision=hidden)": cache.last_hidden == "all",
        "cache.full_head=true": cache.full_head or vocab.draft_size is None,
    }
    lacking = " and ".join(name for name, is_set in needs.items() if not is_set)
    return [f"train.objective {objective} needs a cache with {lacking}"] if lacking else []


def _changed(sections: Mapping[str, BaseModel], name: str) -> object | None:
    """The value of `section.field`, None where it is the default."""
    section, field = name.split(".")
    value = getattr(sections[section], field)
    return None if value == type(sections[section]).model_fields[field].default else value
