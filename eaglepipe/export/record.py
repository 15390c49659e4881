"""Collects the record of a draft's run and cache: settings, target, corpus, figures; any part may be missing."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eaglepipe.cache.manifest import Manifest
from eaglepipe.cache.reader import load_manifest
from eaglepipe.cache.storage import caches_of
from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.files.json_object import read_json_object, text_config
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe

RECIPE_FILE, TRAIN_FILE, EVAL_FILE = "recipe.yaml", "train.json", "eval.json"
TARGET_CONFIG_FILE = "target_config.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Files of a run, and of the first cache that it was trained from; None or empty if they are gone."""

    recipe: Recipe | None = None
    train: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    cache: Manifest | None = None
    target_config: dict[str, Any] = field(default_factory=dict)


def read_record(run: Path) -> RunRecord:
    """Read the files of a run that are there and readable."""
    recipe = load_recipe(run / RECIPE_FILE) if (run / RECIPE_FILE).is_file() else None
    train, evaluation = _read_if_there(run / TRAIN_FILE), _read_if_there(run / EVAL_FILE)
    record = RunRecord(recipe=recipe, train=train, evaluation=evaluation)
    if recipe is None:
        return record
    try:
        folder = caches_of(recipe)[0].folder
        manifest = load_manifest(folder)
    except EaglepipeError:  # moved or deleted since: the draft does not need it
        return record
    target_config = text_config(_read_if_there(folder / TARGET_CONFIG_FILE))
    return replace(record, cache=manifest, target_config=target_config)


def _read_if_there(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except CorruptError:
        return {}
