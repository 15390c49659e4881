"""Run folders: recipe, figures, logs and checkpoints."""

import json
import random
from pathlib import Path

from tests.fuzz.base import ENGINES, Base, declare_checkpoint
from tests.fuzz.safetensors_files import mutate_tensors
from tests.fuzz.subjects.draft_folders import mutate_draft
from tests.fuzz.values import json_text, mutate, mutate_bytes, mutate_json_file

_FILES = ("state.json", "state.json", "draft.safetensors", "optimizer.safetensors", "COMPLETE")


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    run = base.copy(base.run, folder / "run")
    choice = rng.randrange(8)
    if choice <= 1:
        _mutate_lines(run / "metrics.jsonl", rng)
    elif choice <= 3:
        mutate_json_file(run / "train.json", rng)
    elif choice == 4:
        (run / "recipe.yaml").write_bytes(_recipe(base, run, rng))
    elif choice == 5:
        mutate_draft(run / "draft", rng)
    else:
        _mutate_checkpoint(sorted((run / "checkpoints").iterdir())[rng.randrange(2)], rng)
    recipe = str(base.write_recipe(folder / "recipe.yaml", train={"output_dir": str(run)}))
    given = ["--cache", str(base.cache())]
    commands = [
        ["eval", str(run), *given],
        ["eval", str(run), *given, "--target", str(base.target), "--num-prompts", "1", "--max-new-tokens", "4"],
        ["train", recipe, "train.max_steps=3"],
        ["train", recipe, "--dry-run"],
        ["export", str(run), "--to", rng.choice(ENGINES)],
    ]
    most = [*commands, ["report", str(run), *given]] if choice <= 4 else commands
    return rng.sample(most, 2)


def _mutate_lines(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        return
    rows = mutate([json.loads(line) for line in path.read_text().splitlines()], rng)
    lines = [json_text(row) for row in (rows if isinstance(rows, list) else [rows])]
    path.write_text("\n".join(lines) + "\n", errors="surrogatepass")


def _recipe(base: Base, run: Path, rng: random.Random) -> bytes:
    text = (run / "recipe.yaml").read_bytes()
    if rng.random() < 0.4:
        return mutate_bytes(text, rng)
    return json_text(mutate(base.recipe(train={"output_dir": str(run)}), rng)).encode("utf-8", "surrogatepass")


def _mutate_checkpoint(checkpoint: Path, rng: random.Random) -> None:
    """Change a file of a checkpoint, and mostly its marker too, so that the change is its own."""
    path = checkpoint / rng.choice(_FILES)
    if path.suffix == ".safetensors":
        mutate_tensors(path, rng)
    else:
        mutate_json_file(path, rng)
    if path.name != "COMPLETE" and rng.random() < 0.8:
        declare_checkpoint(checkpoint)
