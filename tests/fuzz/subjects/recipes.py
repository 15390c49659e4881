"""Recipes: their structure, values, overrides and bytes."""

import random
from pathlib import Path

from tests.fuzz.base import Base
from tests.fuzz.values import hostile, json_text, mutate, mutate_bytes

_ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_TEXTS = (
    _ALIASES,
    "name: !!python/object/apply:os.system ['true']\n",
    "name: !!binary aGVsbG8=\n",
    "a: &a {b: *a}\n",
    "&a [*a]\n",
    "name: x\nname: y\n",
    "? [a, b]\n: c\n",
    "<<: {name: x}\n",
    "<<: [1, 2]\n",
    "--- a\n--- b\n",
    "name: 2026-01-01\ntarget: 12:30:45\n",
    "name: 1_000\ntarget: 0o777\n",
    "[" * 5000,
    "{a: " * 3000,
    "- " * 3000,
    "a: " + "9" * 6000 + "\n",
    "a: .nan\nb: .inf\n",
    "\t\tname: x\n",
    "name: 'x\n",
    'name: "\\ud800"\n',
    "%YAML 9.9\n---\nname: x\n",
    "null\n",
    "x\n",
    "",
    "#" * 100_000,
)
_KEYS = (
    *("name", "target.path", "data.max_length", "data.sources", "data.sources.0.path", "data.sources.5.path", "data"),
    *("cache.root", "cache.shard_bytes", "cache.aux_layer_ids", "cache.profile", "vocab.draft_size", "train.betas"),
    *("train.max_steps", "train.objective", "train.caches", "train.output_dir", "train.batch_tokens", "draft.init"),
    *("regenerate.sources", "precompute.batch_tokens", "data.chat_template", "data.chat_template_kwargs", "a.b.c", ""),
    *("...", "train.", ".train", "data.sources.-1.path", "data.sources.99999999999.path", "train.seed", "draft.init"),
)


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    recipe = folder / "recipe.yaml"
    own = base.recipe(cache={"root": str(folder / "caches")}, train={"output_dir": str(folder / "run")})
    choice, overrides = rng.random(), []
    if choice < 0.5:
        recipe.write_text(json_text(mutate(own, rng)), errors="surrogatepass")
    elif choice < 0.65:
        recipe.write_bytes(mutate_bytes(json_text(own, indent=1).encode(), rng))
    elif choice < 0.75:
        recipe.write_text(rng.choice(_TEXTS) + ("" if rng.random() < 0.5 else json_text(own)))
    else:
        recipe.write_text(json_text(own))
        overrides = [_override(rng) for _ in range(rng.choice((1, 1, 2)))]
    command = rng.choice((["precompute", "--dry-run"], ["train", "--dry-run"], ["estimate"], ["data", "preview"]))
    return [["recipe", "show", str(recipe), *overrides], [*command, str(recipe), *overrides]]


def _override(rng: random.Random) -> str:
    value = hostile(rng)
    text = value if isinstance(value, str) and rng.random() < 0.7 else json_text(value)
    word = f"{rng.choice(_KEYS)}{rng.choice(('=', '=', '=', '=', '==', '', ': '))}{text}"
    return word.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")[:100_000]
