"""The facts that stage 1 takes from a recipe and from its target's config, tokenizer and template.

Neither weights nor conversations are read, so that a plan costs little and a target on the Hub is not downloaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.kind import EntryRule, entry_rule, stored_codec
from eaglepipe.chat.sources import check_regenerated
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.devices import resolve_device
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import CacheConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.layers import default_aux_layer_ids, rope_kinds, validate_aux_layer_ids
from eaglepipe.target.load import (
    check_tokenizer_fits,
    num_parameters,
    read_model_config,
    resolve_folder,
    text_config_of,
)
from eaglepipe.target.positions import max_positions
from eaglepipe.vllm_engine.extraction import check_extraction
from eaglepipe.vocab import draft_vocab_size


@dataclass(frozen=True, kw_only=True)
class Stage1Inputs:
    """A recipe with its target's config and tokenizer, checked against each other."""

    recipe: Recipe
    folder: Path  # of the target, maybe without its weights
    model_config: PretrainedConfig
    num_parameters: int
    chat: ChatTokenizer | None  # None: the corpus is tokenised already and the target has no tokenizer
    spec: ShardSpec

    @property
    def text_config(self) -> PretrainedConfig:
        """Config of the language model inside the target."""
        return text_config_of(self.model_config, self.recipe.target.path)

    @property
    def rope_split(self) -> int | None:
        """Length above which samples share no batch with shorter ones: the rope would change for both."""
        return rope_kinds(self.text_config).get("longrope")

    def check_lengths(self, num_samples: int, num_longer: int, longest: int) -> None:
        """Check that every sample fits the positions that the target was made for.

        Args:
            num_longer: samples with more tokens than `max_positions`.
            longest: tokens of the longest sample.

        Raises:
            DataError: naming the setting that cuts or drops the longer ones.
        """
        if num_longer:
            dropped = self.recipe.data.on_long == "drop"
            advice = "leave them out" if dropped else "cut them there, with data.on_long=drop to leave them out"
            raise DataError(
                f"{num_longer:,} of {num_samples:,} samples are longer than the {self.max_positions:,} positions that "
                f"the target was made for (the longest has {longest:,} tokens), and no engine serves it beyond them. "
                f"Set data.max_length={self.max_positions} to {advice}"
            )

    @property
    def max_positions(self) -> int | None:
        """Tokens that the target may read at once."""
        return max_positions(self.text_config)

    @property
    def entry_rule(self) -> EntryRule:
        """How the entries of sparse or sampled supervision are chosen, if the spec asks for it."""
        return entry_rule(self.recipe.cache, end_of_turn=self.end_of_turn)

    @property
    def end_of_turn(self) -> int | None:
        """The token that closes an assistant turn."""
        end = self.chat.end_of_turn if self.chat else None
        return end if end is not None and end < self.spec.vocab_size else None

    @property
    def special_ids(self) -> set[int]:
        """Token ids that every draft vocabulary holds; the target may lack embeddings for some special tokens."""
        special = self.chat.special_ids() if self.chat else set()
        return {token_id for token_id in special if token_id < self.spec.vocab_size}


def read_stage1_inputs(recipe: Recipe) -> Stage1Inputs:
    """Read target config, tokenizer and template.

    Raises:
        EaglepipeError: the first of the recipe's settings that cannot be used.
    """
    resolve_device(recipe.precompute.device)
    check_regenerated(recipe)
    folder = resolve_folder(recipe.target, weights=False)
    model_config = read_model_config(folder, recipe.target)
    if recipe.target.engine == "vllm":
        check_extraction(model_config, recipe.target.engine_args, path=recipe.target.path)
    config = text_config_of(model_config, recipe.target.path)
    num_layers = int(config.num_hidden_layers)
    declared = recipe.cache.aux_layer_ids
    aux_layer_ids = (
        default_aux_layer_ids(num_layers) if declared is None else validate_aux_layer_ids(declared, num_layers)
    )
    parameters = num_parameters(model_config, recipe.target.trust_remote_code)
    chat = read_chat_tokenizer(recipe, folder)
    if chat is not None:
        check_tokenizer_fits(chat.plain_vocab_size, int(config.vocab_size))
    spec = ShardSpec(
        **spec_settings(recipe.cache),
        aux_layer_ids=aux_layer_ids,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        draft_vocab_size=draft_vocab_size(recipe.vocab.draft_size, int(config.vocab_size)),
    )
    return Stage1Inputs(
        recipe=recipe, folder=folder, model_config=model_config, num_parameters=parameters, chat=chat, spec=spec
    )


def read_chat_tokenizer(recipe: Recipe, folder: Path) -> ChatTokenizer | None:
    """Load the tokenizer and template in a target's folder; None if it has none and the corpus is tokenised already."""
    only_tokens = all(source.is_tokenized for source in recipe.data.sources)
    if only_tokens and not any(folder.glob("tokenizer*")):
        return None
    tokenizer = load_tokenizer(folder, recipe.target.trust_remote_code)
    return load_chat_tokenizer(tokenizer, recipe.data)


def spec_settings(cache: CacheConfig) -> dict[str, Any]:
    """Return the fields of a `ShardSpec` that the cache settings decide; the target decides the others."""
    return {
        "supervision": cache.supervision,
        "aux_codec": cache.aux_codec,
        "supervision_codec": stored_codec(cache),
        "last_hidden": cache.last_hidden,
    }
