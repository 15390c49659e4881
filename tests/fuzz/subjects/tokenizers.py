"""Files of a tokenizer."""

import random
from pathlib import Path

from tests.fuzz.base import Base
from tests.fuzz.values import hostile, json_text, mutate_bytes, mutate_json_file

_OTHERS = (
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "additional_chat_templates/tool_use.jinja",
)


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    target = base.copy(base.target, folder / "target")
    choice = rng.random()
    if choice < 0.5:
        mutate_json_file(target / "tokenizer.json", rng)
    elif choice < 0.85:
        mutate_json_file(target / "tokenizer_config.json", rng)
    else:
        path = target / rng.choice(_OTHERS)
        path.parent.mkdir(exist_ok=True)
        text = json_text(rng.choice((hostile(rng), {"x": hostile(rng)}, {"<|x|>": 700, "a": hostile(rng)})))
        path.write_bytes(mutate_bytes(text.encode(), rng) if rng.random() < 0.4 else text.encode())
        if rng.random() < 0.5:
            (target / rng.choice(("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))).unlink()
    settings = {"target": {"path": str(target)}, "cache": {"root": str(folder / "caches")}}
    recipe = str(base.write_recipe(folder / "recipe.yaml", **settings))
    output = f"regenerate.output={folder / 'out.jsonl'}"
    commands = (["precompute"], ["estimate"], ["data", "preview"], ["train", "--dry-run"], ["data", "regenerate"])
    return [["precompute", "--dry-run", recipe], [*rng.choice(commands), recipe, output]]
