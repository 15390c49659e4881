"""Untrained block drafts from what a cache keeps of its target: new layers between its embeddings and its head."""

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from eaglepipe.eagle.dflash.config import dflash_config_from_target
from eaglepipe.eagle.registry import DraftSpec, resolve_dflash_draft_spec, resolve_dspark_draft_spec
from eaglepipe.errors import ConfigError
from eaglepipe.files.json_object import text_config
from eaglepipe.recipe.block_settings import DflashDraftConfig
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.objectives.builders import architectures, record_aux_layers, seeded_draft

_NO_SHAPE = {"aux_layer_ids", "freeze_embeddings", "init"}


def build_dflash_draft(
    source: TrainingSource,
    config: DflashDraftConfig,
    *,
    seed: int,
    resolve: Callable[[list[str] | None], DraftSpec] = resolve_dflash_draft_spec,
    **options: Any,
) -> PreTrainedModel:
    """Return a draft with seeded weights, the target's embeddings and its head rows.

    Args:
        resolve: finds the draft class for the target's architectures.
        options: further arguments of `dflash_config_from_target`.

    Raises:
        ConfigError: a hidden size other than the target's.
        DraftError: sizes that do not fit together, or no mask token.
    """
    target = text_config(source.target_config)
    if config.hidden_size not in (None, target["hidden_size"]):
        raise ConfigError(
            f"draft.hidden_size is {config.hidden_size}, the target's {target['hidden_size']}: a block draft shares "
            "the target's embeddings and head and has its width; remove draft.hidden_size"
        )
    draft_config = dflash_config_from_target(
        source.target_config,
        draft_vocab_size=source.vocab.size,
        num_aux_hidden_states=len(source.spec.aux_layer_ids),
        **config.model_dump(exclude={*_NO_SHAPE, *config.heads}),
        **options,
    )
    draft_config.update(config.heads)
    record_aux_layers(draft_config, source.spec.aux_layer_ids, int(target["num_hidden_layers"]))
    draft = seeded_draft(resolve(architectures(source)), source, draft_config, config, seed)
    draft.set_vocab_mapping(source.vocab.selected_token_ids)
    draft.copy_lm_head_from_target(source.start_tensors()["lm_head.weight"])
    return draft


build_dspark_draft = partial(build_dflash_draft, resolve=resolve_dspark_draft_spec, sample_from_anchor=True)
"""A draft whose anchor's slot guesses too, with the Markov head and, if the recipe has it, the confidence head."""
