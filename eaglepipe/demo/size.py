"""How much of everything a demo makes: a glance, the five minutes of `make demo`, or a target that took its time."""

import json
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.cache.publish import publish_json
from eaglepipe.demo.target import TargetShape, TargetTraining
from eaglepipe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """Rows of the corpus, the target and its training, and overrides of the demo's recipe."""

    name: str
    shape: TargetShape
    training: TargetTraining
    train_rows: int = 12_000
    prompt_rows: int = 2_500
    depths: int | None = None  # that the draft is trained for; None: the recipe's
    settings: tuple[str, ...] = ()


FAST = DemoSize(
    name="fast",
    shape=TargetShape(),
    training=TargetTraining(max_steps=40),
    train_rows=600,
    prompt_rows=600,
    depths=3,
    settings=("train.epochs=1", "train.eval_every_steps=20", "regenerate.max_new_tokens=64"),
)
STANDARD = DemoSize(name="standard", shape=TargetShape(), training=TargetTraining())
LONG = DemoSize(
    name="long",
    shape=TargetShape(num_hidden_layers=12),
    training=TargetTraining(max_steps=1_000, max_seconds=2_400.0),
    settings=("train.epochs=3", "train.max_steps=240"),
)
"""After 250 steps or so a target learns to copy from its prompt, which takes several layers: from then on its answers
are about what was asked, and its aux layers differ in what they hold."""


def claim_folder(folder: Path, size: DemoSize) -> None:
    """Note the size of the demo that `folder` is for: what is there already would be taken for this one's.

    Raises:
        ConfigError: a demo of another size has been made there.
    """
    file = folder / "size.json"
    if not file.exists():
        publish_json(file, {"size": size.name})
        return
    found = json.loads(file.read_text(encoding="utf-8"))["size"]
    if found != size.name:
        raise ConfigError(f"{folder} is of a {found} demo, not of a {size.name} one: give another --folder")
