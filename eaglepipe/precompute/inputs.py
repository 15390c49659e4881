"""What a recipe names for stage 1, read, checked against each other, and hashed into the cache's identity.

No weights are loaded. The identity depends on content alone: the same recipe elsewhere gives the same one.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from eaglepipe.cache.identity import cache_folder_name
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec
from eaglepipe.cache.storage import cache_root
from eaglepipe.cache.supervision.sparse import SparseRule
from eaglepipe.chat.sources import check_regenerated, data_fingerprint, source_name
from eaglepipe.chat.template import ChatTokenizer, load_chat_tokenizer, load_tokenizer
from eaglepipe.devices import resolve_device
from eaglepipe.files.hashing import hash_json
from eaglepipe.recipe.config import CacheConfig
from eaglepipe.recipe.load import Recipe
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.layers import default_aux_layer_ids, rope_kinds, validate_aux_layer_ids
from eaglepipe.target.load import check_tokenizer_fits, read_target_config, resolve_folder
from eaglepipe.vocab import draft_vocab_size

# Config fields that say who wrote the file or how it is run, not what the model computes.
_VOLATILE_CONFIG_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "auto_map")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything known before the corpus is tokenised."""

    recipe: Recipe
    chat: ChatTokenizer | None  # None: the corpus is tokenised already and the target has no tokenizer
    spec: ShardSpec
    rope_split: int | None  # longer samples share no batch with others: the rope would change for both
    identity: str
    identity_fields: dict[str, Any]

    @property
    def sparse_rule(self) -> SparseRule:
        """How sparse supervision is cut, where the spec asks for it."""
        cache = self.recipe.cache
        return SparseRule(tolerance=cache.tolerance, max_entries=cache.max_entries)

    @property
    def folder(self) -> Path:
        return cache_root(self.recipe) / cache_folder_name(self.recipe.name, self.identity)


def read_inputs(recipe: Recipe) -> Inputs:
    """Read target config, tokenizer, template and corpus.

    Raises:
        EaglepipeError: the first of the things named that cannot be used, before anything is computed.
    """
    resolve_device(recipe.precompute.device)
    check_regenerated(recipe)
    config = read_target_config(recipe.target)
    num_layers = int(config.num_hidden_layers)
    given = recipe.cache.aux_layer_ids
    aux_layer_ids = default_aux_layer_ids(num_layers) if given is None else validate_aux_layer_ids(given, num_layers)
    chat = read_chat_tokenizer(recipe)
    if chat is not None:
        check_tokenizer_fits(chat.vocab_size, int(config.vocab_size))
    spec = _shard_spec(recipe, config, aux_layer_ids)
    fields = {
        "schema_version": SCHEMA_VERSION,
        "target": _target_fields(recipe, config),
        "data": _data_fields(recipe, chat),
        "vocab": {"draft_size": spec.draft_vocab_size},
        "cache": _cache_fields(recipe, spec),
    }
    return Inputs(
        recipe=recipe,
        chat=chat,
        spec=spec,
        rope_split=rope_kinds(config).get("longrope"),
        identity=hash_json(fields),
        identity_fields=fields,
    )


def read_chat_tokenizer(recipe: Recipe) -> ChatTokenizer | None:
    """The target's tokenizer and template; None where it has none and the corpus is tokenised already."""
    folder = resolve_folder(recipe.target, weights=False)
    only_tokens = all(source.format == "tokenized" for source in recipe.data.sources)
    if only_tokens and not any(folder.glob("tokenizer*")):
        return None
    tokenizer = load_tokenizer(str(folder), None, recipe.target.trust_remote_code)
    return load_chat_tokenizer(tokenizer, recipe.data)


def _shard_spec(recipe: Recipe, config: PretrainedConfig, aux_layer_ids: tuple[int, ...]) -> ShardSpec:
    vocab_size = int(config.vocab_size)
    return ShardSpec(
        **_codecs(recipe.cache),
        aux_layer_ids=aux_layer_ids,
        hidden_size=int(config.hidden_size),
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocab_size(recipe.vocab.draft_size, vocab_size),
    )


def _codecs(cache: CacheConfig) -> dict[str, str]:
    of_rows = {"dense": cache.probs_codec, "sparse": "fp16", "hidden": cache.hidden_codec}
    return {
        "supervision": cache.supervision,
        "aux_codec": cache.aux_codec,
        "supervision_codec": of_rows[cache.supervision],
        "last_hidden": cache.last_hidden,
    }


def with_settings(spec: ShardSpec, cache: CacheConfig) -> ShardSpec:
    """The spec of the same target and vocabulary, stored as other settings say."""
    return replace(spec, **_codecs(cache))  # type: ignore[arg-type]


def _target_fields(recipe: Recipe, config: PretrainedConfig) -> dict[str, Any]:
    fields = config.to_dict()
    stable = {key: value for key, value in fields.items() if key not in _VOLATILE_CONFIG_FIELDS}
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return {
        "config": hash_json(_as_json(stable)),
        "weights": weights_fingerprint(resolve_folder(recipe.target)),
        "revision": recipe.target.revision,
        "dtype": own if recipe.target.dtype == "auto" else recipe.target.dtype,
    }


def _data_fields(recipe: Recipe, chat: ChatTokenizer | None) -> dict[str, Any]:
    data = recipe.data
    return {
        "fingerprint": data_fingerprint(data.sources),
        "sources": [source_name(source) for source in data.sources],
        "tokenizer": chat.fingerprint() if chat else None,
        "chat_template": hash_json(chat.template.source) if chat else None,
        "chat_template_kwargs": data.chat_template_kwargs,
        "mask": chat.template.mask if chat else None,
        "max_length": data.max_length,
        "on_long": data.on_long,
        "supervise": data.supervise,
    }


def _cache_fields(recipe: Recipe, spec: ShardSpec) -> dict[str, Any]:
    sparse = {"tolerance": recipe.cache.tolerance, "max_entries": recipe.cache.max_entries}
    return {
        "supervision": spec.supervision,
        **(sparse if spec.supervision == "sparse" else {}),
        **({"last_hidden": spec.last_hidden} if spec.last_hidden == "all" else {}),
        "aux_codec": spec.aux_codec,
        "supervision_codec": spec.supervision_codec,
        "aux_layer_ids": list(spec.aux_layer_ids),
        "full_head": recipe.cache.full_head,
        "shard_bytes": int(recipe.cache.shard_bytes),
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
