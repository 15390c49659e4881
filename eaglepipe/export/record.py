"""What a run folder and its cache tell about a draft: settings, target, corpus, figures. All of it may be missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.manifest import MANIFEST_NAME
from eaglepipe.cache.reader import load_manifest
from eaglepipe.cache.storage import caches_of
from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.files.json_object import read_json_object, text_config
from eaglepipe.recipe.load import Recipe, load_recipe

RECIPE_FILE, TRAIN_FILE, EVAL_FILE = "recipe.yaml", "train.json", "eval.json"
TARGET_CONFIG_FILE = "target_config.json"


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """Of the first cache that a run was trained from."""

    name: str
    identity: str
    samples: int
    tokens: int
    supervised_tokens: int
    aux_layer_ids: tuple[int, ...]
    target_config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Each part None where it is not there any more."""

    recipe: Recipe | None = None
    train: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    cache: CacheFacts | None = None

    @property
    def target_config(self) -> dict[str, Any]:
        """The target's text config, empty where the cache is gone."""
        config = {} if self.cache is None else self.cache.target_config
        return text_config(config)


def read_record(run: Path) -> RunRecord:
    """Collect what is known of a run; only files that are there and readable count."""
    recipe = load_recipe(run / RECIPE_FILE) if (run / RECIPE_FILE).is_file() else None
    return RunRecord(
        recipe=recipe,
        train=_json_if_there(run / TRAIN_FILE),
        evaluation=_json_if_there(run / EVAL_FILE),
        cache=None if recipe is None else _cache_facts(recipe),
    )


def _cache_facts(recipe: Recipe) -> CacheFacts | None:
    try:
        folder = caches_of(recipe)[0].folder
        manifest = load_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    except EaglepipeError:  # moved or deleted since: the draft does not need it
        return None
    if manifest is None:
        return None
    return CacheFacts(
        name=manifest.name,
        identity=manifest.identity,
        samples=manifest.samples,
        tokens=manifest.tokens,
        supervised_tokens=manifest.supervised_tokens,
        aux_layer_ids=tuple(manifest.spec.aux_layer_ids),
        target_config=_json_if_there(folder / TARGET_CONFIG_FILE) or {},
    )


def _json_if_there(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except CorruptError:
        return None
