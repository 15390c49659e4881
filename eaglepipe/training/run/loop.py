"""The loop of stage 2: steps, log rows, evaluations, checkpoints and stopping, at moments fixed by the step number.

What a checkpoint of step n holds includes everything that step n caused, its evaluation too, so continuing from it is
the same as never having stopped.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import StoppedError
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.signals import StopFlag
from eaglepipe.training.data.batch import EncodedBatch, StepHeader, TrainingSource
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.run.checkpoint import prune_checkpoints, save_checkpoint
from eaglepipe.training.run.distributed import World
from eaglepipe.training.run.heldout import evaluate
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.metrics import StepRecord
from eaglepipe.training.run.optim import learning_rate
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


def train(run: TrainingRun, state: RunState, stop: StopFlag) -> RunState:
    """Continue a run from a state to its end.

    Raises:
        StoppedError: a signal came; the step it came in is finished and saved.
        DraftError: the loss is not a finite number.
    """
    if run.finished(state):
        return state
    total, is_main = run.plan.total_steps, run.world.is_main
    with (
        ProgressLine("train", total=total, unit="step", initial=state.step, enabled=is_main) as progress,
        _loader(run, state) as loader,
    ):
        if state.step == 0:
            state = _evaluate(run, state, progress.write)
        run.log.start()
        for header, batches in loader:
            state = _take_step(run, state, header, batches)
            stopping = run.world.any(bool(stop))
            state = _after_step(run, state, loader, progress, stopping=stopping)
            if run.finished(state):
                break
            if stopping:
                name = stop.signal_name or "a signal on another rank"
                raise StoppedError(f"stopped by {name} after step {state.step} with everything saved; run it again")
    return state


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


def _take_step(run: TrainingRun, state: RunState, header: StepHeader, batches: Iterator[EncodedBatch]) -> RunState:
    sizes = torch.tensor([header.num_tokens, header.num_supervised, header.num_slots])
    totals = run.world.sum(torch.cat([header.counts, sizes]))
    num_tokens, num_supervised, num_slots = totals[-3:].tolist()
    rate = learning_rate(state.step, total_steps=run.plan.total_steps, config=run.config)
    outcome = run.learner.step(batches, totals[:-3], rate)
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
    run: TrainingRun, state: RunState, loader: Loader, progress: ProgressLine, *, stopping: bool
) -> RunState:
    last = state.step >= run.plan.total_steps
    evaluating = last or state.step % run.config.eval_every_steps == 0
    saving = last or stopping or state.step % run.config.checkpoint_every_steps == 0
    status = ""
    if evaluating or saving or state.step % run.config.log_every_steps == 0:
        state, status = run.log.close(state, loader.waited_seconds)
    progress.update(1, status)
    if evaluating:
        best_before = state.best_step
        state = _evaluate(run, state, progress.write)
        saving = saving or state.best_step != best_before or run.finished(state)
    if saving:
        _save(run, state)
    if evaluating or saving:
        run.log.start()
    return state


def _evaluate(run: TrainingRun, state: RunState, say: Callable[[str], None]) -> RunState:
    samples = run.plan.evaluated
    if len(samples) == 0:
        return state
    evaluation = evaluate(
        run.learner, run.source, samples, config=run.config, limits=run.plan.limits, world=run.world, step=state.step
    )
    run.log.add_evaluation(evaluation)
    say(evaluation.describe())
    return state.after_evaluation(evaluation)


def _save(run: TrainingRun, state: RunState) -> None:
    if run.world.is_main:
        save_checkpoint(
            run.checkpoints,
            state=state,
            contract=run.contract,
            draft=run.learner.draft_tensors(),
            optimizer=run.learner.optimizer_tensors(),
        )
        prune_checkpoints(run.checkpoints, keep=run.config.keep_checkpoints, step=state.step)
    run.world.barrier()
