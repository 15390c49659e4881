"""The recipe that ships as `demo`, moved to a folder and turned to a family of drafts."""

import json
from pathlib import Path

from eaglepipe.demo.size import STANDARD, DemoSize
from eaglepipe.errors import ConfigError
from eaglepipe.families import DEFAULT_FAMILY, FAMILIES
from eaglepipe.files.publish import publish_bytes, publish_json
from eaglepipe.recipe.load import dump_recipe, load_recipe, parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.resources import shipped_recipes


def demo_recipe(folder: Path, *, size: DemoSize = STANDARD, objective: str = DEFAULT_FAMILY.name) -> Recipe:
    """Return the demo's recipe with its paths below `folder`, and write it to `folder/demo.yaml`.

    Raises:
        ConfigError: there is no such objective, or `folder` has a demo of another size.
    """
    family = FAMILIES.get(objective)
    if family is None:
        raise ConfigError(f"the demo has no objective {objective!r}; it knows {', '.join(FAMILIES)}")
    _claim_folder(folder, size)
    shipped = load_recipe(shipped_recipes()["demo"])
    moved = parse_recipe(json.loads(shipped.model_dump_json().replace("runs/demo", folder.as_posix())))
    file = folder / f"demo{name_suffix(objective)}.yaml"
    publish_json(file, moved.model_dump(mode="json"))
    overrides = [f"cache.root={(folder / 'caches').as_posix()}", f"train.objective={objective}"]
    overrides += [f"train.output_dir={(folder / f'train{name_suffix(objective)}').as_posix()}", *size.settings]
    depths = (size.depths or shipped.train.depths) + family.anchor_slots
    overrides += [f"train.{family.depths_setting}={depths}", *family.unmet_needs({})]
    recipe = load_recipe(file, overrides)
    publish_bytes(file, dump_recipe(recipe).encode())  # whole, so that the next draft can be trained from it
    return recipe


def name_suffix(objective: str) -> str:
    """Return the end of the names of an objective's own files and folders."""
    return {DEFAULT_FAMILY.name: ""}.get(objective, f"-{objective}")


def _claim_folder(folder: Path, size: DemoSize) -> None:
    """Note the size of the demo that `folder` is for: its files would be taken for those of a demo of another size."""
    file = folder / "size.json"
    if not file.exists():
        publish_json(file, {"size": size.name})
        return
    present = json.loads(file.read_text(encoding="utf-8"))["size"]
    if present != size.name:
        raise ConfigError(f"{folder} is of a {present} demo, not of a {size.name} one: give another --folder")
