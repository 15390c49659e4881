"""Untrained block drafts from what a cache keeps of its target: new layers between its embeddings and its head."""

from typing import Any

from transformers import PreTrainedModel

from eaglepipe.eagle.dflash.config import dflash_config_from_target
from eaglepipe.eagle.registry import resolve_dflash_draft_spec
from eaglepipe.errors import ConfigError
from eaglepipe.files.json_object import text_config
from eaglepipe.recipe.block_settings import DflashDraftConfig
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.objectives.builders import architectures, record_aux_layers, seeded_draft

_NO_SHAPE = {"aux_layer_ids", "freeze_embeddings", "init"}


def build_dflash_draft(
    source: TrainingSource, config: DflashDraftConfig, *, seed: int, **options: Any
) -> PreTrainedModel:
    """Return a draft with seeded weights, the target's embeddings and its head rows.

    Args:
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
        **config.model_dump(exclude=_NO_SHAPE),
        **options,
    )
    record_aux_layers(draft_config, source.spec.aux_layer_ids, int(target["num_hidden_layers"]))
    spec = resolve_dflash_draft_spec(architectures(source))
    draft = seeded_draft(spec, source, draft_config, config, seed)
    draft.set_vocab_mapping(source.vocab.selected_token_ids)
    draft.copy_lm_head_from_target(source.start_tensors()["lm_head.weight"])
    return draft
