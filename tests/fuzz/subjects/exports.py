"""Published exports, to be checked against the rules of their engine and of others."""

import random
from pathlib import Path

from tests.fuzz.base import ENGINES, Base
from tests.fuzz.subjects.draft_folders import mutate_draft
from tests.fuzz.values import mutate_json_file


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    engine = rng.choice(ENGINES)
    export, target = base.copy(base.export(engine), folder / "export"), base.target
    if rng.random() < 0.8:
        mutate_draft(export, rng)
    else:
        target = base.copy(base.target, folder / "target")
        mutate_json_file(target / "config.json", rng)
    check = ["export", "--check", str(export), "--to", rng.choice((engine, engine, *ENGINES))]
    return [[*check, *rng.choice(([], ["--target", str(target)]))], [*check, "--target", str(target), "--json"]]
