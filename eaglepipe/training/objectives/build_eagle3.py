"""Builds the draft from what the cache kept of its target, and publishes a trained one as a model folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from eaglepipe.eagle.aux_layers import default_boundaries
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.registry import resolve_eagle3_draft_spec
from eaglepipe.errors import ConfigError
from eaglepipe.files.json_object import text_config
from eaglepipe.files.publish import publish_json
from eaglepipe.files.tensors import publish_tensors
from eaglepipe.recipe.config import DraftConfig
from eaglepipe.training.data.batch import TrainingSource

_NO_SHAPE = {"aux_layer_ids", "freeze_embeddings", "init", "lm_head_init"}
"""Settings of a draft that are no part of its config, or get there another way."""


def build_draft(
    source: TrainingSource, config: DraftConfig, *, seed: int, parallel_drafting: bool = False
) -> PreTrainedModel:
    """A float32 draft on the CPU: seeded weights, the target's embeddings and, if asked for, its head rows.

    With `parallel_drafting` a P-EAGLE draft, whose mask token is the recipe's, else the target's pad token.

    Raises:
        ConfigError: the shape asked for cannot take over the target's embeddings or head.
        DraftError: no draft for this architecture, sizes that do not fit together, or no mask token for P-EAGLE.
    """
    target = text_config(source.target_config)
    _check_width(config, int(target["hidden_size"]))
    draft_config = draft_config_from_target(
        source.target_config,
        draft_vocab_size=source.vocab.size,
        num_aux_hidden_states=len(source.spec.aux_layer_ids),
        parallel_drafting=parallel_drafting,
        **config.model_dump(exclude=_NO_SHAPE),
    )
    _record_aux_layers(draft_config, source.spec.aux_layer_ids, int(target["num_hidden_layers"]))
    spec = resolve_eagle3_draft_spec(_architectures(source))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draft = spec.draft_cls(draft_config).float()
    tensors = source.start_tensors()
    draft.set_vocab_mapping(source.vocab.selected_token_ids)
    if draft_config.hidden_size == target["hidden_size"]:
        draft.copy_embeddings_from_target(tensors["embed_tokens.weight"])
    if config.lm_head_init == "target":
        draft.copy_lm_head_from_target(tensors["lm_head.weight"])
    if config.freeze_embeddings:
        draft.freeze_embeddings()
    return draft


def _record_aux_layers(draft_config: PretrainedConfig, boundaries: Sequence[int], num_layers: int) -> None:
    """Leave in the draft's config what exporting and evaluating it take, in the names that engines read."""
    draft_config.eagle_aux_hidden_state_layer_ids = list(boundaries)
    draft_config.eagle_aux_layers_are_default = tuple(boundaries) == default_boundaries(num_layers)
    draft_config.target_num_hidden_layers = num_layers


def _check_width(config: DraftConfig, target_hidden_size: int) -> None:
    if config.hidden_size in (None, target_hidden_size):
        return
    what = f"draft.hidden_size is {config.hidden_size}, the target's {target_hidden_size}"
    if config.freeze_embeddings:
        raise ConfigError(f"{what}: the target's embeddings do not fit; set draft.freeze_embeddings to false")
    if config.lm_head_init == "target":
        raise ConfigError(f"{what}: the target's head rows do not fit; set draft.lm_head_init to random")


def _architectures(source: TrainingSource) -> list[str]:
    return [str(name) for name in source.target_config.get("architectures") or []]


def publish_draft(draft: PreTrainedModel, folder: Path) -> None:
    """Write weights, then config; each file appears whole."""
    publish_tensors(folder / "model.safetensors", {name: value.cpu() for name, value in draft.state_dict().items()})
    config = {**draft.config.to_dict(), "architectures": [type(draft).__name__], "dtype": "float32"}
    publish_json(folder / "config.json", config)
