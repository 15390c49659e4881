"""One draft of `study codecs`: trained from a variant's cache, judged on the exact cache, its result kept in a file."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eaglepipe import __version__
from eaglepipe.cache.identity import IDENTITY_PREFIX
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import CacheError
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.publish import publish_json
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import TrainResult, train_from
from eaglepipe.training.data.aux_subset import choose_aux_layers
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.run.ranks.distributed import join_world
from eaglepipe.training.run.run_plan import plan_run
from tests.studies.codecs_judge import Judgement, judge
from tests.studies.codecs_variants import PairedSource, Variant

HELDOUT_FRACTION = 0.1
"""More than the demo holds out: its steps do not reach the end of the samples, and differences here are small."""
_NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training, as a worker is told of it."""

    recipe_file: Path
    exact: Path
    variant: Variant
    cache: Path
    seed: int
    max_steps: int
    results: Path

    def recipe(self) -> Recipe:
        """The recipe of the exact cache's own run, with other steps, seed and evaluation."""
        wanted: dict[str, Any] = {
            "output_dir": str(self._folder),
            "caches": None,
            "seed": self.seed,
            "max_steps": self.max_steps,
            "heldout_fraction": HELDOUT_FRACTION,
            "eval_max_samples": 1,  # of the variant's own supervision; what counts is measured afterwards
            "eval_every_steps": _NEVER,
            "checkpoint_every_steps": 20,
            "keep_checkpoints": 1,
        }
        return load_recipe(self.recipe_file, [f"train.{key}={json.dumps(value)}" for key, value in wanted.items()])

    @property
    def key(self) -> str:
        """A hash of all that decides the result; a run with another key is another run."""
        recipe = load_recipe(self.recipe_file)
        asked = {
            "version": [__version__, 3],
            "exact": Cache.open(self.exact).identity,
            "variant": self.variant.described(),
            "seed": self.seed,
            "max_steps": self.max_steps,
            "heldout_fraction": HELDOUT_FRACTION,
            "draft": recipe.draft.model_dump(mode="json", exclude_defaults=True),
            "train": recipe.train.model_dump(mode="json", exclude={"output_dir", "caches"}, exclude_defaults=True),
        }
        return hash_json(asked)[:IDENTITY_PREFIX]

    @property
    def result_file(self) -> Path:
        return self.results / f"{self.key}.json"

    @property
    def _folder(self) -> Path:
        return self.result_file.with_suffix(".run")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How good a draft is on the exact cache's held-out samples."""

    variant: str
    seed: int
    steps: int
    heldout_samples: int
    loss: float
    acceptance_length: float
    sampled_acceptance_length: float
    seconds: float

    @classmethod
    def read(cls, path: Path) -> "RunResult | None":
        return cls(**json.loads(path.read_bytes())) if path.exists() else None


def train_one(run: TrainingRun) -> RunResult:
    """Train and judge one draft, or read back the result of before; one thread."""
    path = run.result_file
    if (done := RunResult.read(path)) is not None:
        return replace(done, variant=run.variant.name)
    torch.set_num_threads(1)
    run.results.mkdir(parents=True, exist_ok=True)
    exact = Cache.open(run.exact)
    cache = Cache.open(run.cache)
    if cache.index.sample_ids != exact.index.sample_ids:
        raise CacheError(f"{run.cache} does not hold the samples of {run.exact}, so their drafts cannot be compared")
    recipe = run.recipe()
    with _log(path.with_suffix(".log")):
        trained = train_from(
            recipe, PairedSource(cache, identity=exact.identity, renormalised=run.variant.renormalised)
        )
        unchanged = PairedSource(exact, identity=exact.identity, renormalised=False)
        judged = _judge(recipe, choose_aux_layers(unchanged, recipe.draft.aux_boundaries), trained)
    result = RunResult(
        variant=run.variant.name,
        seed=run.seed,
        steps=trained.steps,
        heldout_samples=judged.samples,
        loss=judged.loss,
        acceptance_length=judged.acceptance_length,
        sampled_acceptance_length=judged.sampled_acceptance_length,
        seconds=round(trained.seconds, 1),
    )
    publish_json(path, asdict(result))
    shutil.rmtree(trained.run_folder)
    return result


def _judge(recipe: Recipe, exact: TrainingSource, trained: TrainResult) -> Judgement:
    """The trained draft over every held-out sample, nothing of it recoded."""
    draft = build_draft(exact, recipe.train, recipe.draft)
    draft.load_state_dict(load_file(Path(trained.draft_folder) / "model.safetensors"))
    with join_world(recipe.train.device) as world:
        plan = plan_run(exact, recipe.train, world)
        return judge(draft, exact, plan.split.heldout, config=recipe.train, limits=plan.limits, world=world)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Progress of one of several processes goes to a file."""
    with path.open("a") as stream, contextlib.redirect_stderr(stream):
        yield
