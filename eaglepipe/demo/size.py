"""How much of everything a demo makes: a glance, or the five minutes of `make demo`."""

from dataclasses import dataclass
from pathlib import Path

from eaglepipe.demo.target import TargetTraining
from eaglepipe.errors import ConfigError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_json


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """Rows of the corpus, the training of the target, and overrides of the demo's recipe."""

    name: str
    training: TargetTraining
    train_rows: int = 12_000
    prompt_rows: int = 2_500
    depths: int | None = None  # that the draft is trained for; None: the recipe's
    settings: tuple[str, ...] = ()


FAST = DemoSize(
    name="fast",
    training=TargetTraining(max_steps=80),
    train_rows=600,
    prompt_rows=600,
    depths=3,
    settings=("train.epochs=1", "train.eval_every_steps=20", "regenerate.max_new_tokens=64"),
)
STANDARD = DemoSize(name="standard", training=TargetTraining())


def claim_folder(folder: Path, size: DemoSize) -> None:
    """Note the size of the demo that `folder` is for: what is there already would be taken for this one's.

    Raises:
        ConfigError: a demo of another size has been made there.
    """
    file = folder / "size.json"
    if not file.exists():
        publish_json(file, {"size": size.name})
        return
    found = read_json_object(file)["size"]
    if found != size.name:
        raise ConfigError(f"{folder} is of a {found} demo, not of a {size.name} one: give another --folder")
