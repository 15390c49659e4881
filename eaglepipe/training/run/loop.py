"""The loop of stage 2: steps, log rows, evaluations, checkpoints and stopping, at moments fixed by the step number.

What a checkpoint of step n holds includes everything that step n caused, its evaluation too, so continuing from it is
the same as never having stopped. A step that is cut because it takes too long after a signal is taken again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import StoppedError
from eaglepipe.files.tensors import publish_tensors
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.signals import StopFlag
from eaglepipe.stop_watch import rescued_by, unhurried
from eaglepipe.training.data.batch import EncodedBatch, StepHeader, TrainingSource
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.run.checkpoint import prune_checkpoints, save_checkpoint
from eaglepipe.training.run.heldout import evaluate
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.metrics import StepRecord
from eaglepipe.training.run.optim import learning_rate
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.ranks.sharding import publish_shards, send_shards
from eaglepipe.training.run.run_plan import RunPlan
from eaglepipe.training.run.state import RunState
from eaglepipe.training.run.step_log import StepLog


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The parts of a run that its steps share."""

    source: TrainingSource
    config: TrainConfig
    plan: RunPlan
    world: World
    learner: Learner
    log: StepLog
    checkpoints: Path
    contract: Mapping[str, Any]

    def finished(self, state: RunState) -> bool:
        out_of_patience = state.out_of_patience(self.config.early_stop_patience)
        return state.step >= self.plan.total_steps or out_of_patience


@dataclass(kw_only=True)
class _Current:
    """The state after the last step, and whether the evaluation of that step is still to come."""

    state: RunState
    evaluation_due: bool = False


def train(run: TrainingRun, state: RunState, stop: StopFlag, *, evaluation_due: bool = False) -> RunState:
    """Continue a run from a state to its end.

    Args:
        evaluation_due: whether the run was ended before the evaluation of the state's step.

    Raises:
        StoppedError: a signal came; the step it came in is finished and saved.
        DraftError: the loss is not a finite number.
    """
    if run.finished(state) and not evaluation_due:
        return state
    total, is_main = run.plan.total_steps, run.world.is_main
    now = _Current(state=state, evaluation_due=evaluation_due or state.step == 0)
    with (
        ProgressLine("train", total=total, unit="step", initial=state.step, enabled=is_main) as progress,
        _loader(run, state) as loader,
        rescued_by(lambda: _rescue(run, now, loader)),
    ):
        if now.evaluation_due:
            _evaluate(run, now, progress.write)
            if state.step > 0:
                _save(run, now.state)
        run.log.start()
        if run.finished(now.state):
            return now.state
        for header, batches in loader:
            with ExitStack() as unhurried_part:
                hold = partial(_hold, unhurried_part)
                if run.learner.is_sharded:
                    hold()  # as only all ranks together can save: the end of the process waits for this step
                now.state = _take_step(run, now.state, header, batches, hold)
                stopping = run.world.any(bool(stop))
                evaluating, saving = _after_step(run, now, loader, progress, stopping=stopping)
                if stopping and run.learner.is_sharded:
                    _save(run, now.state, evaluation_due=evaluating)
                    raise _stopped(now.state, stop)
            if evaluating:
                best_before = now.state.best_step
                _evaluate(run, now, progress.write)
                saving = saving or now.state.best_step != best_before or run.finished(now.state)
            if saving:
                _save(run, now.state)
            if evaluating or saving:
                run.log.start()
            if run.finished(now.state):
                break
            if stopping:
                raise _stopped(now.state, stop)
    return now.state


def _hold(stack: ExitStack) -> None:
    stack.enter_context(unhurried())


def _stopped(state: RunState, stop: StopFlag) -> StoppedError:
    name = stop.signal_name or "a signal on another rank"
    return StoppedError(f"stopped by {name} after step {state.step} with everything saved; run it again")


def _loader(run: TrainingRun, state: RunState) -> Loader:
    costs = run.learner.costs(run.source.index, training=True)
    plans = plan_steps(run.plan.order, costs, limits=run.plan.limits, start=state.position)
    return Loader(
        run.source,
        plans,
        draw=partial(run.learner.objective.draw, training=True),
        columns=run.learner.objective.columns,
        device=run.world.device,
        prefetch_batches=run.config.prefetch_batches,
    )


def _take_step(
    run: TrainingRun,
    state: RunState,
    header: StepHeader,
    batches: Iterator[EncodedBatch],
    before_update: Callable[[], object],
) -> RunState:
    sizes = torch.tensor([header.num_tokens, header.num_supervised, header.num_slots])
    rounds = torch.zeros(run.world.size, dtype=torch.int64)
    rounds[run.world.rank] = len(header.plan.micro_batches)
    parts = [header.counts, sizes, rounds]
    counts, sizes, rounds = run.world.sum(torch.cat(parts)).split([len(part) for part in parts])
    num_tokens, num_supervised, num_slots = sizes.tolist()
    rate = learning_rate(state.step, total_steps=run.plan.total_steps, config=run.config)
    outcome = run.learner.step(batches, counts, rate, before_update, rounds=int(rounds.max()))
    state = replace(
        state,
        step=state.step + 1,
        position=header.plan.after,
        tokens=state.tokens + num_tokens,
        supervised_tokens=state.supervised_tokens + num_supervised,
    )
    record = StepRecord(
        step=state.step,
        epoch=state.position.epoch,
        learning_rate=rate,
        tokens=num_tokens,
        supervised_tokens=num_supervised,
        padding=1 - num_tokens / num_slots,
    )
    run.log.add(record, outcome)
    return state


def _after_step(
    run: TrainingRun, now: _Current, loader: Loader, progress: ProgressLine, *, stopping: bool
) -> tuple[bool, bool]:
    """Log a step; returns whether it is evaluated and saved."""
    last = now.state.step >= run.plan.total_steps
    evaluating = last or now.state.step % run.config.eval_every_steps == 0
    saving = last or stopping or now.state.step % run.config.checkpoint_every_steps == 0
    status = ""
    if evaluating or saving or now.state.step % run.config.log_every_steps == 0:
        now.state, status = run.log.close(now.state, loader.waited_seconds)
    progress.update(1, status)
    now.evaluation_due = evaluating
    return evaluating, saving


def _evaluate(run: TrainingRun, now: _Current, say: Callable[[str], None]) -> None:
    samples, state = run.plan.evaluated, now.state
    evaluation = None
    if len(samples) > 0:
        limits = run.plan.limits
        evaluation = evaluate(
            run.learner, run.source, samples, config=run.config, limits=limits, world=run.world, step=state.step
        )
    with unhurried():
        if evaluation is not None:
            run.log.add_evaluation(evaluation)
            say(evaluation.describe())
            now.state = state.after_evaluation(evaluation)
        now.evaluation_due = False


def _save(run: TrainingRun, state: RunState, *, evaluation_due: bool = False) -> None:
    if run.world.is_main:
        with unhurried():
            _publish(run, state, evaluation_due=evaluation_due)
    elif run.learner.is_sharded:
        with run.world.explained_losses():
            send_shards(run.learner.draft_tensors())
            send_shards(run.learner.optimizer_tensors())
    run.world.barrier()


def _publish(run: TrainingRun, state: RunState, *, evaluation_due: bool = False) -> None:
    with run.world.explained_losses():
        save_checkpoint(
            run.checkpoints,
            state=state,
            contract=run.contract,
            draft=run.learner.draft_tensors(),
            optimizer=run.learner.optimizer_tensors(),
            evaluation_due=evaluation_due,
            dtype=run.config.dtype,
            publish=publish_shards if run.learner.is_sharded else publish_tensors,
        )
    prune_checkpoints(run.checkpoints, keep=run.config.keep_checkpoints, step=state.step)


def _rescue(run: TrainingRun, now: _Current, loader: Loader) -> str:
    """Save the last whole step while the next one is being computed, which has changed none of its tensors.

    With several ranks, whose sums need all of them, the window of the log that is open stays without rows.
    """
    state = now.state
    if run.learner.is_sharded:
        return "everything up to the last checkpoint is saved, run it again"
    if not run.world.is_main or state.step == 0:
        return "it had not finished a step, run it again"
    if run.world.size == 1 and not run.log.is_empty:
        state, _ = run.log.close(state, loader.waited_seconds)
    _publish(run, state, evaluation_due=now.evaluation_due)
    return f"everything up to step {state.step} is saved, run it again"
