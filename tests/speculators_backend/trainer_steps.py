"""Three steps of speculators' own trainer, from a cache and from files a sample of its own: the losses are the same.

`python -m tests.speculators_backend.trainer_steps` in an environment with speculators. Its trainer wants a GPU: without
one it is told that its device is the CPU.
"""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eaglepipe.precompute.stage import run_precompute
from eaglepipe.speculators_backend.__main__ import main as backend
from eaglepipe.speculators_backend.backend import register
from eaglepipe.speculators_backend.states import CacheStates
from tests.tiny_project import TinyProject, make_project

STEPS = 3


def losses_of(train: Callable[[], object]) -> list[float]:
    """Return the losses that a training logs; by a filter, since the trainer replaces the logger's handlers."""
    found: list[float] = []

    def keep(record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict) and "train" in record.msg:
            found.append(float(record.msg["train"]["loss"]))
        return True

    logger = logging.getLogger("speculators.metrics")
    logger.addFilter(keep)
    train()
    logger.removeFilter(keep)
    return found


def use_cpu() -> None:
    """Let speculators' trainer work on the CPU if there is no accelerator."""
    from speculators.train import trainer

    if not torch.accelerator.is_available():
        vars(trainer)["get_local_rank"] = lambda: "cpu"
        vars(torch.accelerator)["synchronize"] = lambda: None


def write_own_files(states: CacheStates, data: Path, folder: Path) -> None:
    """Write the dataset and a file of states a sample, as speculators' connectors do."""
    shutil.copytree(data, folder)
    (folder / "hidden_states").mkdir()
    for number in range(states.cache.num_samples):
        tensors = {name: tensor.contiguous() for name, tensor in states.read(number).items()}
        save_file(tensors, folder / "hidden_states" / f"hs_{number}.safetensors")


def arguments(project: TinyProject, states: CacheStates, folder: Path, data: Path) -> list[str]:
    """Return the settings that both trainings share."""
    spec = states.cache.spec
    options: dict[str, Any] = {
        "data-path": data,
        "verifier-name-or-path": project.target,
        "speculator-type": "eagle3",
        "target-layer-ids": " ".join(map(str, spec.aux_layer_ids)),
        "draft-vocab-size": spec.draft_vocab_size,
        "save-path": folder,
        "max-steps": STEPS,
        "epochs": 1,
        "log-freq": 1,
        "num-workers": 0,
        "total-seq-len": 512,
        "hidden-states-dtype": "float32",
        "draft-attn-impl": "eager",
        "loss-implementation": "eager",
    }
    return [part for name, value in options.items() for part in (f"--{name}", *str(value).split())]


def main() -> int:
    """Print the losses of both; returns whether they differ."""
    register()  # before speculators reads its registry
    from speculators.train.cli import main as train
    from speculators.train.config import TrainConfig

    use_cpu()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        project = make_project(place / "project")
        recipe = project.recipe(**{"cache.root": str(place / "caches"), "cache.profile": "lean"})
        cache = Path(run_precompute(recipe, report=lambda _: None).folder)
        states, data, own = CacheStates(cache), place / "data", place / "own"
        assert backend(["data", str(cache), str(data)]) == 0
        write_own_files(states, data, own)
        shared = ["train", *arguments(project, states, place / "a", data), "--eaglepipe-cache", str(cache)]
        from_cache = losses_of(lambda: backend(shared))
        given = arguments(project, states, place / "b", own)
        from_files = losses_of(lambda: train(TrainConfig.resolve(["--on-missing", "raise", *given])))
    print(json.dumps({"from the cache": from_cache, "from files": from_files}, indent=1))
    return int(from_cache != from_files or len(from_cache) != STEPS)


if __name__ == "__main__":
    sys.exit(main())
