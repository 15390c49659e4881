"""Stage 2: train a draft from caches alone; the target is never loaded, and its files need not exist.

Read `train_from` from top to bottom: that is the order in which a run goes.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from eaglepipe.cache.storage import CacheShare
from eaglepipe.drafts.init_record import DraftInit, apply_init, open_init
from eaglepipe.drafts.mask_token import with_mask_token
from eaglepipe.errors import CorruptError
from eaglepipe.files.leftovers import leftovers, remove_abandoned
from eaglepipe.files.lock import folder_lock
from eaglepipe.files.publish import publish_bytes, publish_json
from eaglepipe.recipe.load import dump_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import stop_on_signals
from eaglepipe.stop_watch import unhurried
from eaglepipe.training.data.aux_subset import choose_aux_layers
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.objectives.builders import build_draft, publish_draft
from eaglepipe.training.run.checkpoint import Checkpoint, load_checkpoint, load_latest, step_name
from eaglepipe.training.run.learner import Learner, restore_parameters
from eaglepipe.training.run.loop import TrainingRun, train
from eaglepipe.training.run.metrics import MetricsFile
from eaglepipe.training.run.optim import trainable_parameters
from eaglepipe.training.run.precision import choose_dtype
from eaglepipe.training.run.ranks.distributed import World, join_world
from eaglepipe.training.run.run_plan import RunPlan, check_contract, plan_run, resume_contract
from eaglepipe.training.run.state import RunState
from eaglepipe.training.run.step_log import StepLog, Tracker
from eaglepipe.training.run.trackers.opening import open_trackers, require_trackers


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The report of a finished run, also `train.json`; `_end` is the best evaluation's, whose draft is published."""

    run_folder: str
    draft_folder: str
    dtype: str  # of the computation
    steps: int
    total_steps: int
    best_step: int
    stopped_early: bool
    train_samples: int
    heldout_samples: int
    tokens: int
    supervised_tokens: int
    tokens_per_s: float
    data_wait_share: float
    seconds: float
    heldout_loss_start: float | None
    heldout_loss_end: float | None
    accuracy_by_depth_start: tuple[float, ...] | None
    accuracy_by_depth: tuple[float, ...] | None
    conditional_acceptance_by_depth: tuple[float, ...] | None
    simulated_acceptance_length_start: float | None
    simulated_acceptance_length_end: float | None


@dataclass(frozen=True, kw_only=True)
class TrainPreview:
    """The size of a run, as `--dry-run` shows it."""

    run_folder: str
    train_samples: int
    heldout_samples: int
    train_tokens: int
    total_steps: int
    pack_length: int
    draft_parameters: int
    trainable_parameters: int
    notes: tuple[str, ...]


def run_folder(recipe: Recipe) -> Path:
    """Return the folder of a run's checkpoints, metrics and draft."""
    return Path(recipe.train.output_dir or f"runs/{recipe.name}").expanduser()


def preview_training(recipe: Recipe, caches: Sequence[Path | CacheShare]) -> TrainPreview:
    """Plan a run and build its draft, without taking a step or writing anything; raises what `run_training` does."""
    source = choose_aux_layers(open_caches(caches), recipe.draft.aux_boundaries)
    recipe = with_mask_token(recipe, source, run_folder(recipe))
    with join_world(recipe.train.device) as world:
        size = max(world.size, recipe.train.sequence_parallel)  # how many there will be is not known yet
        plan = plan_run(source, recipe.train, replace(world, size=size))
    draft, notes = _build_draft(recipe, source, _open_init(recipe))
    return TrainPreview(
        run_folder=str(run_folder(recipe)),
        train_samples=len(plan.split.train),
        heldout_samples=len(plan.split.heldout),
        train_tokens=plan.train_tokens,
        total_steps=plan.total_steps,
        pack_length=plan.limits.pack_length,
        draft_parameters=sum(parameter.numel() for parameter in draft.parameters()),
        trainable_parameters=sum(parameter.numel() for parameter in trainable_parameters(draft).values()),
        notes=(*plan.notes, *notes),
    )


def run_training(recipe: Recipe, caches: Sequence[Path | CacheShare]) -> TrainResult:
    """Train, or continue to train, the draft of a recipe from complete caches.

    Raises:
        ConfigError, CacheError, DraftError: the recipe, the caches and the run folder do not fit together.
        CorruptError: a sample or every checkpoint fails its checks.
        StoppedError: SIGTERM or SIGINT came; everything is saved, and the same call continues.
    """
    return train_from(recipe, open_caches(caches))


def train_from(recipe: Recipe, source: TrainingSource) -> TrainResult:
    """Train as `run_training` does, on samples that are open already."""
    source = choose_aux_layers(source, recipe.draft.aux_boundaries)
    recipe = with_mask_token(recipe, source, run_folder(recipe))
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        world = stack.enter_context(join_world(recipe.train.device))
        say = partial(_say, world)
        require_trackers(recipe.train.trackers)

        plan = plan_run(source, recipe.train, world)
        for note in plan.notes:
            say(note)

        folder, init = run_folder(recipe), _open_init(recipe)
        if world.is_main:
            stack.enter_context(folder_lock(folder))
            remove_abandoned(leftovers(folder))
        contract = resume_contract(recipe, source, init_digest=None if init is None else init.digest)
        checkpoint = _find_checkpoint(folder, contract, say)
        draft, notes = _build_draft(recipe, source, init, write_record=world.is_main)
        recipe, dtype_notes = _with_dtype(recipe, draft.config.hidden_size, world, checkpoint)
        for note in (*dtype_notes, *notes):
            say(note)
        learner = Learner(source, draft, recipe.train, world)
        state = _resume(checkpoint, learner)
        if world.is_main:
            publish_bytes(folder / "recipe.yaml", dump_recipe(recipe).encode())

        run = TrainingRun(
            source=source,
            config=recipe.train,
            plan=plan,
            world=world,
            learner=learner,
            log=StepLog(world, _open_trackers(recipe, folder, state, world, stack)),
            checkpoints=folder / "checkpoints",
            contract=contract,
        )
        due = checkpoint is not None and checkpoint.evaluation_due
        state = train(run, state, stop, evaluation_due=due)

        result = _result(folder, recipe.train.dtype, plan, state)
        if world.is_main:
            if learner.is_sharded:  # which is over; this rank has room for a whole draft, on the host
                draft, _ = _build_draft(recipe, source, init)
            with unhurried():
                _publish(folder, draft, None if learner.is_sharded else state.step, result)
        world.barrier()
        return result


def _open_init(recipe: Recipe) -> DraftInit | None:
    init = recipe.draft.init
    return None if init is None else open_init(init, run_folder(recipe) / "checkpoints")


def _find_checkpoint(folder: Path, contract: dict[str, Any], say: Callable[[str], None]) -> Checkpoint | None:
    """Load the newest trustworthy checkpoint, if it is of this run; None at its beginning."""
    checkpoint = load_latest(folder / "checkpoints", say)
    if checkpoint is not None:
        check_contract(checkpoint.contract, contract, str(folder))
        say(f"{folder}: going on from step {checkpoint.state.step}")
    return checkpoint


def _with_dtype(
    recipe: Recipe, width: int, world: World, checkpoint: Checkpoint | None
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the dtype that the run computes in, and notes about it."""
    recorded = None if checkpoint is None else checkpoint.dtype
    name, notes = choose_dtype(recipe.train, world, width=width, begun=checkpoint is not None, recorded=recorded)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"dtype": name})}), notes


def _build_draft(
    recipe: Recipe, source: TrainingSource, init: DraftInit | None, *, write_record: bool = False
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    draft = build_draft(source, recipe.train, recipe.draft)
    return draft, () if init is None else apply_init(draft, init, write_record=write_record)


def _resume(checkpoint: Checkpoint | None, learner: Learner) -> RunState:
    """Load a checkpoint into the learner and return its state; without checkpoint, the state of a new run."""
    if checkpoint is None:
        return RunState()
    try:
        learner.restore_draft(checkpoint.draft_tensors())
        learner.restore_optimizer(checkpoint.optimizer_tensors())
    except (KeyError, RuntimeError, ValueError) as error:
        raise CorruptError(f"{checkpoint.folder}: its tensors are not those of this draft ({error})") from None
    return checkpoint.state


def _open_trackers(
    recipe: Recipe, folder: Path, state: RunState, world: World, stack: ExitStack
) -> tuple[Tracker, ...]:
    if not world.is_main:
        return ()
    metrics = MetricsFile(folder / "metrics.jsonl", last_step=state.step)
    stack.callback(metrics.close)
    trackers = open_trackers(recipe, folder, last_step=state.step, say=partial(_say, world))
    for tracker in trackers:
        stack.callback(tracker.close)
    return (metrics, *trackers)


def _publish(folder: Path, draft: PreTrainedModel, step: int | None, result: TrainResult) -> None:
    """Write the best draft and the summary; `step` is that of the weights that `draft` has, None if it was not trained.

    The best step's checkpoint exists: it is saved when it is found to be the best, or as the last one.
    """
    if step != result.best_step:
        best: Checkpoint = load_checkpoint(folder / "checkpoints" / step_name(result.best_step))
        restore_parameters(draft, best.draft_tensors())
    publish_draft(draft, folder / "draft")
    publish_json(folder / "train.json", asdict(result))


def _result(folder: Path, dtype: str, plan: RunPlan, state: RunState) -> TrainResult:
    first, best = state.first, state.best
    return TrainResult(
        run_folder=str(folder),
        draft_folder=str(folder / "draft"),
        dtype=dtype,
        steps=state.step,
        total_steps=plan.total_steps,
        best_step=state.step if best is None else best.step,
        stopped_early=state.step < plan.total_steps,
        train_samples=len(plan.split.train),
        heldout_samples=len(plan.split.heldout),
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        tokens_per_s=state.tokens / max(state.train_seconds, 1e-9),
        data_wait_share=state.waited_seconds / max(state.train_seconds, 1e-9),
        seconds=state.train_seconds,
        heldout_loss_start=None if first is None else first.loss,
        heldout_loss_end=None if best is None else best.loss,
        accuracy_by_depth_start=None if first is None else first.accuracy_by_depth,
        accuracy_by_depth=None if best is None else best.accuracy_by_depth,
        conditional_acceptance_by_depth=None if best is None else best.conditional_acceptance_by_depth,
        simulated_acceptance_length_start=None if first is None else first.simulated_acceptance_length,
        simulated_acceptance_length_end=None if best is None else best.simulated_acceptance_length,
    )


def _say(world: World, message: str) -> None:
    if world.is_main:
        print(message, file=sys.stderr, flush=True)
