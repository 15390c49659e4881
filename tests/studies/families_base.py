"""The recipe that the rows of `study families` override: a finished demo's, or one given for any target."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eaglepipe.cache.opening import load_manifest
from eaglepipe.errors import ConfigError
from eaglepipe.families import DEFAULT_FAMILY
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.layers import default_aux_layer_ids
from eaglepipe.training.data.source import open_caches

DEPTH = 7
_BLOCK_LAYERS = 5
_OF_EVERY_ROW = {
    "train.ttt_steps": DEPTH,
    "train.eval_max_samples": None,
    "train.early_stop_patience": None,
}


def demo_base(demo: Path, folder: Path) -> Recipe:
    """Return the recipe of a finished demo, from where its files are now, with a cache that serves every family.

    Raises:
        ConfigError: no finished demo there.
    """
    target = next((path for path in (demo / "target.moved-away", demo / "target") if path.exists()), None)
    answers, recipe = demo / "data" / "regenerated.jsonl", demo / "demo.yaml"
    if target is None or not answers.exists() or not recipe.exists():
        raise ConfigError(f"{demo} is no finished demo: run `eaglepipe demo --folder {demo}` first")
    depth = json.loads((target / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    aux_layers = default_aux_layer_ids(depth)
    settings = {
        "name": "families",
        "target.path": target.as_posix(),
        "data.sources": [{"path": answers.as_posix()}],
        "regenerate": None,
        "cache.root": (folder / "caches").as_posix(),
        "cache.supervision": "hidden",
        "cache.aux_layer_ids": sorted({*aux_layers, *block_boundaries(depth), depth}),
        "cache.last_hidden": "all",
        "cache.full_head": True,
        "draft.aux_layer_ids": aux_layers,
        "train.caches": None,
        "train.heldout_fraction": 0.1,  # families differ by a few hundredths
        **_OF_EVERY_ROW,
    }
    return load_recipe(recipe, _overrides(settings))


def recipe_base(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe of an EAGLE-3 draft; its cache, the one in `train.caches` if it names one, serves as it is.

    Raises:
        ConfigError: it is of another family.
    """
    recipe = load_recipe(file, overrides)
    if recipe.train.family is not DEFAULT_FAMILY:
        raise ConfigError(f"{file}: the rows change a recipe of {DEFAULT_FAMILY.label}; set train.objective to eagle3")
    return load_recipe(file, [*overrides, *_overrides(_OF_EVERY_ROW)])


def block_boundaries(num_layers: int) -> tuple[int, ...]:
    """Return the boundaries of published block drafts: the outputs of five layers from the second to the third last."""
    spread = (1 + step * (num_layers - 4) / (_BLOCK_LAYERS - 1) for step in range(_BLOCK_LAYERS))
    return tuple(sorted({max(1, min(num_layers, round(layer) + 1)) for layer in spread}))


def boundaries_of(cache: Path) -> dict[str, object]:
    """Return the placeholders of rows for a cache: boundaries among those that it holds, `top_layer` if it does.

    Raises:
        ConfigError: it lacks the default ones of an EAGLE-3 draft.
    """
    present = load_manifest(cache).spec.aux_layer_ids
    num_layers = int(open_caches([cache]).target_config["num_hidden_layers"])
    aux_layers, of_blocks = default_aux_layer_ids(num_layers), block_boundaries(num_layers)
    if not set(aux_layers) <= set(present):
        needed = sorted({*present, *aux_layers, *of_blocks})
        raise ConfigError(
            f"{cache}: holds boundaries {list(present)}; precompute one with cache.aux_layer_ids={needed}"
        )
    return {
        "aux_layers": list(aux_layers),
        "last_aux": aux_layers[-1],
        **({"top_layer": num_layers} if num_layers in present else {}),
        "block_layers": list(of_blocks if set(of_blocks) <= set(present) else present),
    }


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
