"""Outputs of `data regenerate`, finished or half-way, as its input and as a corpus."""

import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.base import Base
from tests.fuzz.values import json_text, mutate, mutate_bytes, mutate_json_file

_NAME = "answers.jsonl"


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    answers = base.copy(base.answers, folder / "answers")
    output = answers / _NAME
    choice = rng.random()
    if choice < 0.4:
        _mutate_rows(output, [json.loads(line) for line in output.read_text().splitlines()], rng)
    elif choice < 0.6:
        mutate_json_file(answers / f"{_NAME}.report.json", rng)
    elif choice < 0.65:
        (answers / f"{_NAME}.report.json").unlink()
    else:
        _mutate_rows(answers / f"{_NAME}.part", _log_of(answers), rng)
        output.unlink()
    data = {"data": {"sources": [{"path": str(output)}]}} if output.exists() else {}
    recipe = str(
        base.write_recipe(
            folder / "recipe.yaml", regenerate={"output": str(output)}, cache={"root": str(folder / "caches")}, **data
        )
    )
    commands = (["precompute", "--dry-run", recipe], ["data", "preview", recipe], ["precompute", recipe])
    return [["data", "regenerate", recipe], rng.choice(commands)]


def _log_of(answers: Path) -> list[Any]:
    """The log of a run that was killed before its output appeared."""
    settings = json.loads((answers / f"{_NAME}.report.json").read_text())["settings"]
    written = [json.loads(line) for line in (answers / _NAME).read_text().splitlines()]
    left_out = [json.loads(line) for line in (answers / f"{_NAME}.left-out.jsonl").read_text().splitlines()]
    rows = [{"status": "written", "reason": "", "tokens": 3, "id": row["id"], "rows": [row]} for row in written]
    return [{"settings": settings}, *rows, *left_out]


def _mutate_rows(path: Path, rows: list[Any], rng: random.Random) -> None:
    text = "".join(json_text(row) + "\n" for row in rows).encode()
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(text, rng))
        return
    changed = mutate(rows, rng)
    lines = "".join(json_text(row) + "\n" for row in (changed if isinstance(changed, list) else [changed]))
    path.write_text(lines, errors="surrogatepass")
