"""Runs of every family in several processes, sharded or not, compared with one process.

`python -m tests.training.run.worlds [FAMILY ...]` prints the table. Ranks are real processes that meet by gloo; tests
take their helpers from here.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.torch import load_file

from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import train_from
from eaglepipe.training.data.batch import EncodedBatch
from eaglepipe.training.run import loop
from eaglepipe.training.run.metrics import read_metrics
from tests.ranks import run_ranks
from tests.training.objectives.test_dflash import spare_source
from tests.training.tiny_source import VOCAB, TinySource, tiny_recipe, tiny_source

FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "eagle3": {"train": {"ttt_steps": 3}},
    "eagle3.1": {"train": {"ttt_steps": 3}, "draft": {"norm_before_fc": True, "num_hidden_layers": 2}},
    "eagle3 lambda": {"train": {"ttt_steps": 3, "loss": "lambda"}, "draft": {"freeze_embeddings": False}},
    "eagle1": {"train": {"objective": "eagle1", "ttt_steps": 3}},
    "peagle": {
        "train": {"objective": "peagle", "peagle_depths": 4, "sequence_partitions": 2},
        "draft": {"mask_token_id": VOCAB - 1, "num_hidden_layers": 2},
    },
    "dflash": {"train": {"objective": "dflash", "block_size": 4}, "draft": {"num_hidden_layers": 2}},
    "dspark": {
        "train": {"objective": "dspark", "block_size": 4},
        "draft": {"num_hidden_layers": 2, "markov_rank": 8},
    },
}
SHARED = {
    "epochs", "batch_tokens", "micro_batch_tokens", "learning_rate", "device", "dtype", "heldout_fraction",
    "eval_every_steps", "checkpoint_every_steps", "log_every_steps", "caches",
}  # fmt: skip


def family_recipe(name: str, folder: Path, **train: Any) -> Recipe:
    """A short run of a family in `folder`."""
    values = tiny_recipe(folder).model_dump(mode="json")
    shared = {key: value for key, value in values["train"].items() if key in SHARED}
    sections = FAMILIES[name]
    # the schedule of rates follows the number of steps, and the last one is always evaluated
    steady = {"warmup_ratio": 0.0, "min_learning_rate_ratio": 1.0, "eval_every_steps": 2}
    settings = {"objective": "eagle3", **shared, **steady, **sections["train"], **train}
    values["train"] = {**settings, "output_dir": str(folder)}
    values["draft"] = sections.get("draft", {})
    return parse_recipe(values)


def family_source(name: str) -> TinySource:
    return tiny_source(for_eagle1=True) if name == "eagle1" else spare_source()


def run_family(name: str, folder: Path, train: dict[str, Any]) -> None:
    """Train, as the only process or as a rank, and record what each step reads."""
    source = family_source(name)
    with recorded_samples(folder, source):
        train_from(family_recipe(name, folder, **train), source)


@contextmanager
def recorded_samples(folder: Path, source: TinySource) -> Iterator[None]:
    """Append the ids of the samples that this process learns from in each step, as its batches hold them."""
    named = {_as_slots(sample.input_ids): sample.sample_id for sample in source.samples}
    assert len(named) == len(source.samples)
    take_step = loop._take_step

    def take(run: Any, state: Any, header: Any, batches: Iterator[EncodedBatch], before: Any) -> Any:
        taken: list[str] = []

        def watched() -> Iterator[EncodedBatch]:
            for batch in batches:
                taken.extend(named[document] for document in _documents(batch.packed))
                yield batch

        after = take_step(run, state, header, watched(), before)
        with (folder / "samples.jsonl").open("a") as file:  # a line is appended at once
            file.write(json.dumps([after.step, taken]) + "\n")
        return after

    with patch.object(loop, "_take_step", take):
        yield


def _as_slots(input_ids: np.ndarray) -> tuple[int, ...]:
    """The ids of a sample as the slots of its document hold them, but for the last, which has none."""
    return tuple(input_ids[1:].tolist())


def _documents(packed: PackedBatch) -> Iterator[tuple[int, ...]]:
    """The ids of each document of a batch, as `_as_slots`."""
    for row, real, positions in zip(packed.input_ids, packed.attention_mask, packed.position_ids, strict=True):
        starts = (positions[real] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], int(real.sum())], strict=True):
            yield tuple(row[start : end - 1].tolist())


def step_samples(folder: Path) -> list[list[str]]:
    """Return the samples of each step, over all ranks; each step was taken once by each rank of its world."""
    steps: dict[int, list[str]] = {}
    for line in (folder / "samples.jsonl").read_text().splitlines():
        step, taken = json.loads(line)
        steps.setdefault(step, []).extend(taken)
    assert list(steps) == list(range(1, len(steps) + 1))
    return [sorted(taken) for taken in steps.values()]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The largest differences between two runs."""

    loss: float  # relative, of any step
    weight: float  # of any weight of the published draft
    steps: int
    same_samples: bool  # in every step


def step_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]


def deviation(folder: Path, reference: Path) -> Deviation:
    losses, expected = (step_losses(one) for one in (folder, reference))
    assert len(losses) == len(expected)
    weights, others = (load_file(one / "draft" / "model.safetensors") for one in (folder, reference))
    assert weights.keys() == others.keys()
    return Deviation(
        loss=max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)),
        weight=max((weights[name].double() - others[name].double()).abs().max().item() for name in weights),
        steps=len(losses),
        same_samples=step_samples(folder) == step_samples(reference),
    )


WORLDS: tuple[tuple[tuple[int, bool], ...], ...] = (
    ((2, False),),
    ((2, True),),
    ((3, False),),
    ((3, True),),
    ((2, False), (3, False), (1, False)),
    ((2, True), (3, True), (1, False)),
    ((1, False), (3, True), (2, False)),
)
"""Processes, and whether they are sharded; a run of several goes on with others after some steps."""


def run_worlds(name: str, folder: Path, worlds: Sequence[tuple[int, bool]], steps: int) -> None:
    """Train for `steps` steps, a part in each world; a part ends with an evaluation, so let it have an even number."""
    for number, (count, sharded) in enumerate(worlds, start=1):
        last = number == len(worlds)
        limit = steps if last else number * steps // len(worlds)
        run_ranks(count, run_family, name, folder, {"shard": sharded, "max_steps": limit})


def main(names: Sequence[str], steps: int = 6) -> None:
    """Print a table of deviations from one process."""
    print(f"{'family':14} {'processes':>34} {'loss':>10} {'weights':>10} samples of each step", flush=True)
    with tempfile.TemporaryDirectory() as root:
        for name in names or list(FAMILIES):
            reference = Path(root) / f"{name}-1"
            run_worlds(name, reference, ((1, False),), steps)
            for number, worlds in enumerate(WORLDS):
                folder = Path(root) / f"{name}-{number}"
                run_worlds(name, folder, worlds, steps)
                title = " -> ".join(f"{count}{' sharded' * sharded}" for count, sharded in worlds)
                found = deviation(folder, reference)
                order = "the same" if found.same_samples else "OTHERS"
                print(f"{name:14} {title:>34} {found.loss:10.1e} {found.weight:10.1e} {order}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
