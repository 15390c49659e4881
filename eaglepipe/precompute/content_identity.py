"""The identity of the cache that stage 1 would make: a hash of all content that decides its bytes.

The same recipe over the same content gives the same identity on any machine, whatever the paths.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.identity import cache_folder_name
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache.storage import cache_root
from eaglepipe.chat.sources import fingerprint_sources, source_name
from eaglepipe.files.hashing import hash_json
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.identity import target_fields
from eaglepipe.target.load import resolve_folder
from eaglepipe.target.steps.stops import stop_ids_of_folder


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """A cache's identity and the fields that it is the hash of."""

    digest: str
    fields: dict[str, Any]

    def folder(self, recipe: Recipe) -> Path:
        """Return the folder of the cache under the recipe's root."""
        return cache_root(recipe) / cache_folder_name(recipe.name, self.digest)


def cache_identity(inputs: Stage1Inputs, *, weights: str, corpus: str) -> CacheIdentity:
    """Return the identity that the fingerprints of the target's weights and of the corpus give."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "target": target_fields(inputs.folder, inputs.model_config, inputs.recipe.target, weights=weights),
        "data": _data_fields(inputs, corpus),
        "vocab": {"draft_size": inputs.spec.draft_vocab_size},
        "cache": _cache_fields(inputs),
    }
    return CacheIdentity(digest=hash_json(fields), fields=fields)


def read_identity(inputs: Stage1Inputs) -> CacheIdentity:
    """Read the target's weights and the corpus for the identity of their cache.

    Raises:
        EaglepipeError: weights or conversations that are missing or malformed.
    """
    weights = weights_fingerprint(resolve_folder(inputs.recipe.target))
    return cache_identity(inputs, weights=weights, corpus=fingerprint_sources(inputs.recipe.data.sources).hexdigest())


def _data_fields(inputs: Stage1Inputs, corpus: str) -> dict[str, Any]:
    data, chat = inputs.recipe.data, inputs.chat
    return {
        "fingerprint": corpus,
        "sources": [source_name(source) for source in data.sources],
        **({} if data.imported is None else {"imported": data.imported.format, "every_token": data.mask == "all"}),
        "tokenizer": chat.fingerprint() if chat else None,
        "chat_template": hash_json(chat.template.sources()) if chat else None,
        "chat_template_kwargs": data.chat_template_kwargs,
        "mask": chat.template.mask if chat else None,
        "max_length": data.max_length,
        "on_long": data.on_long,
        "supervise": data.supervise,
        **_generate_fields(inputs),
    }


def _generate_fields(inputs: Stage1Inputs) -> dict[str, Any]:
    """Return what decides the target's answers besides target and prompts; nothing for conversations as they are."""
    settings = inputs.recipe.data.generate
    if settings is None:
        return {}
    ends = stop_ids_of_folder(inputs.folder, inputs.model_config, inputs.chat)
    return {"generate": {**settings.identity_fields(), "ends": sorted(ends)}}


def _cache_fields(inputs: Stage1Inputs) -> dict[str, Any]:
    spec, cache = inputs.spec, inputs.recipe.cache
    return {
        "supervision": spec.supervision,
        **{name: getattr(cache, name) for name in spec.kind.settings},
        **({"last_hidden": spec.last_hidden} if spec.last_hidden == "all" else {}),
        "aux_codec": spec.aux_codec,
        "supervision_codec": spec.supervision_codec,
        "aux_layer_ids": list(spec.aux_layer_ids),
        "full_head": cache.full_head,
        "shard_bytes": int(cache.shard_bytes),
    }
