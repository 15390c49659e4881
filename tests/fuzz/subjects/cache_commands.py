"""Commands that read a cache."""

import random
from pathlib import Path

from tests.fuzz.base import Base


def cache_commands(rng: random.Random, base: Base, folder: Path, cache: Path, kind: str) -> list[list[str]]:
    """Return two or three commands that read the cache, each in another way."""
    settings = {"cache": {"root": str(cache.parent)}, "train": {"output_dir": str(folder / "run")}}
    recipe = str(base.write_recipe(folder / "recipe.yaml", **settings))
    given, finished = f"train.caches=[{cache}]", base.copy(base.run, folder / "finished")
    commands = (
        ["cache", "ls", str(cache.parent)],
        ["cache", "info", str(cache)],
        ["cache", "verify", str(cache)],
        ["cache", "peek", str(cache), "--sample", rng.choice(("0", "3", "-1", "x", "99999"))],
        ["cache", "diff", str(cache), str(base.cache(kind))],
        ["cache", "recode", str(folder / "out"), str(cache), *rng.choice(_RECODES[kind])],
        ["cache", "merge", str(folder / "merged"), str(cache), str(base.cache(kind))],
        ["cache", "clean", str(cache)],
        ["cache", "repair", str(cache)],
        ["cache", "repair", str(cache), "--recipe", recipe],
        ["cache", "path", recipe],
        ["train", "--dry-run", recipe, given],
        ["train", "--dry-run", recipe],
        ["train", recipe, given, "train.max_steps=1"],
        ["precompute", recipe],
        ["eval", str(finished), "--cache", str(cache)],
    )
    return [["cache", "verify", "--full", str(cache)], *rng.sample(commands, 2)]


_RECODES = {
    "hidden": (["--aux-codec", "int4"], ["--supervision", "sparse"], ["--draft-size", "40"], ["--codec", "fp8"]),
    "dense": (["--aux-codec", "fp16"], ["--supervision", "sparse"]),
    "sparse": (["--aux-codec", "bf16"], ["--tolerance", "0.2"]),
}
