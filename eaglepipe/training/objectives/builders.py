"""Build drafts from what the cache keeps of its target, and publish trained ones as model folders."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from eaglepipe.cache.supervision.sampled import SampledSupervision
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.registry import DraftSpec, resolve_eagle1_draft_spec, resolve_eagle3_draft_spec
from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.families import default_boundaries
from eaglepipe.files.digests import DIGESTS_FILE, publish_digests
from eaglepipe.files.json_object import text_config
from eaglepipe.files.publish import publish_json, published_folder
from eaglepipe.files.tensors import CONFIG_FILE, SINGLE_FILE, publish_tensors
from eaglepipe.recipe.family_settings import Eagle1DraftConfig, Eagle3DraftConfig
from eaglepipe.recipe.training import DraftConfig, TrainConfig
from eaglepipe.training.data.batch import TrainingSource

_NO_SHAPE = {"aux_layer_ids", "freeze_embeddings", "init", "lm_head_init"}
"""Settings of a draft that are no part of its config, or get there another way."""
_EAGLE3_KEYS = (
    "draft_vocab_size",
    "num_aux_hidden_states",
    "target_hidden_size",
    "fc_norm",
    "norm_output",
    "norm_before_fc",
    "norm_before_residual",
    "qk_norm",
)


def build_draft(source: TrainingSource, train: TrainConfig, config: DraftConfig) -> PreTrainedModel:
    """Return an untrained float32 draft of the recipe's family on the CPU, the same for the same seed.

    Raises:
        CacheError: the cache does not hold what the family learns from.
        ConfigError: the draft's shape cannot take over the target's embeddings or head.
        DraftError: no draft for this architecture, sizes that do not fit together, or no mask token.
    """
    family = train.family
    _check_cache(source, train)
    draft: PreTrainedModel = family.load(family.builder)(source, config, seed=train.seed, **train.draft_options)
    draft.gradient_checkpointing = train.gradient_checkpointing
    return draft


def build_eagle3_draft(
    source: TrainingSource, config: Eagle3DraftConfig, *, seed: int, parallel_drafting: bool = False
) -> PreTrainedModel:
    """Return a draft with seeded weights, the target's embeddings and, if asked for, its head rows."""
    target = text_config(source.target_config)
    _check_width(config, target["hidden_size"])
    draft_config = draft_config_from_target(
        source.target_config,
        draft_vocab_size=source.vocab.size,
        num_aux_hidden_states=len(source.spec.aux_layer_ids),
        parallel_drafting=parallel_drafting,
        **config.model_dump(exclude=_NO_SHAPE),
    )
    record_aux_layers(draft_config, source.spec.aux_layer_ids, int(target["num_hidden_layers"]))
    spec = resolve_eagle3_draft_spec(architectures(source))
    draft = seeded_draft(spec, source, draft_config, config, seed)
    if not config.freeze_embeddings:  # for exports of the draft's folder alone
        draft.config.embed_requires_grad = True
    draft.set_vocab_mapping(source.vocab.selected_token_ids)
    if config.lm_head_init == "target":
        draft.copy_lm_head_from_target(source.start_tensors()["lm_head.weight"])
    return draft


build_peagle_draft = partial(build_eagle3_draft, parallel_drafting=True)
"""A draft whose mask token is the recipe's, else the target's pad token."""


def build_eagle1_draft(source: TrainingSource, config: Eagle1DraftConfig, *, seed: int) -> PreTrainedModel:
    """Return a draft of the target's width, whose features it predicts, with seeded weights and its embeddings."""
    width = text_config(source.target_config)["hidden_size"]
    if config.hidden_size not in (None, width):
        raise ConfigError(
            f"draft.hidden_size is {config.hidden_size}, the target's {width}: an EAGLE-1/2 draft "
            "predicts the target's features and has its width; remove draft.hidden_size"
        )
    norms = {"input_norm": config.input_norm, "final_norm": config.final_norm}
    shape = config.model_dump(exclude={*_NO_SHAPE, *norms})
    draft_config = draft_config_from_target(source.target_config, num_aux_hidden_states=1, **shape)
    draft_config.update(norms)
    for name in _EAGLE3_KEYS:
        delattr(draft_config, name)
    draft_config.bias = False
    return seeded_draft(resolve_eagle1_draft_spec(architectures(source)), source, draft_config, config, seed)


def _check_cache(source: TrainingSource, train: TrainConfig) -> None:
    spec, vocab, family = source.spec, source.vocab, train.family
    has_full_head = vocab.size == vocab.target_size or "lm_head_full.weight" in source.start_tensors()
    stored = {"supervision": spec.supervision, "last_hidden": spec.last_hidden, "full_head": has_full_head}
    if unmet := family.unmet_needs(stored):
        raise CacheError(f"this cache lacks what {family.label} learns from; precompute one with {' and '.join(unmet)}")
    if isinstance(spec.kind, SampledSupervision) and (reader := train.reads_whole_distribution) is not None:
        raise CacheError(
            f"this cache has supervision 'sampled', entries drawn so that cross-entropy is right in the mean, and "
            f"{reader}, which is not linear in them; precompute with cache.supervision=hidden, dense or sparse"
        )


def _check_width(config: Eagle3DraftConfig, target_hidden_size: int) -> None:
    if config.hidden_size in (None, target_hidden_size):
        return
    sizes = f"draft.hidden_size is {config.hidden_size}, the target's {target_hidden_size}"
    if config.freeze_embeddings:
        raise ConfigError(f"{sizes}: the target's embeddings do not fit; set draft.freeze_embeddings to false")
    if config.lm_head_init == "target":
        raise ConfigError(f"{sizes}: the target's head rows do not fit; set draft.lm_head_init to random")


def record_aux_layers(draft_config: PretrainedConfig, boundaries: Sequence[int], num_layers: int) -> None:
    """Write the boundaries into the draft's config, by the names that engines read, for export and evaluation."""
    draft_config.eagle_aux_hidden_state_layer_ids = list(boundaries)
    draft_config.eagle_aux_layers_are_default = tuple(boundaries) == default_boundaries(num_layers)
    draft_config.target_num_hidden_layers = num_layers


def seeded_draft(
    spec: DraftSpec, source: TrainingSource, draft_config: PretrainedConfig, config: DraftConfig, seed: int
) -> Any:
    """Return a draft with seeded weights and, if it has the target's width, the target's embeddings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draft: Any = spec.draft_cls(draft_config).float()
    if draft_config.hidden_size == text_config(source.target_config)["hidden_size"]:
        draft.copy_embeddings_from_target(source.start_tensors()["embed_tokens.weight"])
    if config.freeze_embeddings:
        draft.freeze_embeddings()
    return draft


def architectures(source: TrainingSource) -> list[str]:
    """Return the names by which a target's config says what it is."""
    return [str(name) for name in source.target_config.get("architectures") or []]


def publish_draft(draft: PreTrainedModel, folder: Path) -> None:
    """Publish a folder with weights, config and their digests, which takes the place of an earlier one as a whole.

    Other files that somebody put there are kept.

    Raises:
        ResourceError: full disk; an earlier folder is untouched.
    """
    config = {**draft.config.to_dict(), "architectures": [type(draft).__name__], "dtype": "float32"}
    tensors = {name: value.cpu() for name, value in draft.state_dict().items()}
    with published_folder(folder) as new:
        digests = {
            SINGLE_FILE: publish_tensors(new / SINGLE_FILE, tensors),
            CONFIG_FILE: publish_json(new / CONFIG_FILE, config),
        }
        publish_digests(new, digests)
        for other in folder.iterdir() if folder.is_dir() else ():
            if other.name not in (*digests, DIGESTS_FILE):
                _copy(other, new / other.name)


def _copy(source: Path, path: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, path, symlinks=True)
    else:
        shutil.copy2(source, path, follow_symlinks=False)
