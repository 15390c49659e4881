"""A project whose random target ends its answers soon, and recipes by which it answers prompts for a cache."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from tests.tiny_project import TinyProject

SAMPLED = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}


def save_ending_target(project: TinyProject, folder: Path) -> Path:
    """Save the project's target with every tenth token as an end of its answers."""
    model, tokenizer = (kind.from_pretrained(project.target) for kind in (AutoModelForCausalLM, AutoTokenizer))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, len(tokenizer), 10)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversation(number: int) -> dict[str, Any]:
    """Every third has two turns, the second without an answer; every fourth a system message."""
    system = [{"role": "system", "content": "Be brief."}] if number % 4 == 0 else []
    first = [{"role": "user", "content": f"Tell me about {number} " * (1 + number % 5)}]
    more = [{"role": "assistant", "content": "never said by the target"}, {"role": "user", "content": "And then?"}]
    return {"id": f"row{number}", "messages": system + first + (more if number % 3 == 0 else [])}


def answering_recipe(
    target: Path, folder: Path, rows: Iterable[Mapping[str, Any]], *, generate: Mapping[str, Any], **sections: Any
) -> Recipe:
    """Return a recipe over rows that are written into `folder`, where its caches go too."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [{"path": str(source)}], "max_length": 256, "max_drop_fraction": 0.5, "generate": generate}
    data |= sections.pop("data", {})
    cache = {"root": str(folder / "caches"), "profile": "exact", "shard_bytes": "150KiB", **sections.pop("cache", {})}
    return parse_recipe(
        {
            "name": "own",
            "target": {"path": str(target)},
            "data": data,
            "cache": cache,
            "precompute": {"batch_tokens": 2048},
            **sections,
        }
    )
