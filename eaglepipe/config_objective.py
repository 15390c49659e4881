"""Which settings belong to which objective: one that would be ignored is refused, not passed over."""

from collections.abc import Mapping

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
    loss = getattr(sections["train"], "loss", None)
    mistakes += [
        f"{name} is {value!r}, which train.loss {loss} ignores (it serves lambda); remove it"
        for name in OF_LAMBDA
        if loss != "lambda" and objective in SERVES[name] and (value := _changed(sections, name)) is not None
    ]
    if mistakes:
        raise ValueError("; ".join(mistakes))


def _changed(sections: Mapping[str, BaseModel], name: str) -> object | None:
    """The value of `section.field`, None where it is the default."""
    section, field = name.split(".")
    value = getattr(sections[section], field)
    return None if value == type(sections[section]).model_fields[field].default else value
