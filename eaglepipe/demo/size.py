"""How much of everything a demo makes: a minute's worth, or the five minutes of `make demo`."""

from dataclasses import dataclass

from eaglepipe.demo.target import TargetTraining


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
