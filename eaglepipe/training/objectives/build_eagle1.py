"""Builds an EAGLE-1/2 draft from what the cache kept of its target."""

import torch
from transformers import PreTrainedModel

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.registry import resolve_eagle1_draft_spec
from eaglepipe.errors import ConfigError
from eaglepipe.files.json_object import text_config
from eaglepipe.recipe.config import DraftConfig
from eaglepipe.training.data.batch import TrainingSource

_SHAPE = (
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
)
_OF_EAGLE3 = (
    "draft_vocab_size",
    "num_aux_hidden_states",
    "target_hidden_size",
    "fc_norm",
    "norm_output",
    "norm_before_fc",
    "norm_before_residual",
)


def build_eagle1_draft(source: TrainingSource, config: DraftConfig, *, seed: int) -> PreTrainedModel:
    """A float32 draft on the CPU: seeded weights and the target's embeddings.

    Raises:
        ConfigError: a hidden size other than the target's, whose features the draft predicts.
        DraftError: no draft for this architecture, or sizes that do not fit together.
    """
    target = text_config(source.target_config)
    if config.hidden_size not in (None, target["hidden_size"]):
        raise ConfigError(
            f"draft.hidden_size is {config.hidden_size}, the target's {target['hidden_size']}: an EAGLE-1/2 draft "
            "predicts the target's features and has its width; remove draft.hidden_size"
        )
    architectures = [str(name) for name in source.target_config.get("architectures") or []]
    spec = resolve_eagle1_draft_spec(architectures)
    shape = {name: getattr(config, name) for name in _SHAPE}
    draft_config = draft_config_from_target(source.target_config, num_aux_hidden_states=1, **shape)
    for name in _OF_EAGLE3:
        delattr(draft_config, name)
    draft_config.bias = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draft = spec.draft_cls(draft_config).float()
    draft.copy_embeddings_from_target(source.start_tensors()["embed_tokens.weight"])
    if config.freeze_embeddings:
        draft.freeze_embeddings()
    return draft
