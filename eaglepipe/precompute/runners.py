"""Who computes shards: a model of transformers in this process, or an engine."""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from eaglepipe.cache.writer import ShardItem
from eaglepipe.devices import resolve_device
from eaglepipe.precompute.answers.engine_run import AnsweringEngineRun
from eaglepipe.precompute.answers.run import AnsweringRun
from eaglepipe.precompute.claims import Worker
from eaglepipe.precompute.engine.run import EngineRun
from eaglepipe.precompute.imported.run import ImportRun
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.precompute.shard_run import ShardRun
from eaglepipe.signals import StopFlag
from eaglepipe.target.capture import HFEagle3TargetModel, load_target_model
from eaglepipe.target.head_only import load_head_only
from eaglepipe.target.model import TargetParts

Report = Callable[[str], None]


class ShardRunner(Protocol):
    """One process's work on the shards of a plan, with the parts of the target that it loaded for it."""

    @property
    def plan(self) -> PrecomputePlan:
        """The plan, with the draft vocabulary by which shards are encoded."""

    @property
    def target(self) -> TargetParts:
        """What the cache keeps of the target besides its states."""

    def write_missing(self, worker: Worker) -> int:
        """Compute and publish this worker's missing shards; returns their number.

        Raises:
            StoppedError: a signal asked to stop; what is published stays.
            DataError: more samples are lost than data.max_drop_fraction allows; the published shards stay.
        """

    def write_again(self, shards: Collection[int], known_of: Callable[[int], Mapping[str, ShardItem]]) -> int:
        """Publish shards anew; what is known of a shard, by sample id, is written as it is.

        Returns:
            The number of samples that were not known.
        """


def shard_runner(inputs: Stage1Inputs, plan: PrecomputePlan, stop: StopFlag, report: Report) -> ShardRunner:
    """Load what the recipe's engine needs.

    Raises:
        EaglepipeError: the target cannot be loaded, or its engine is missing.
    """
    if inputs.recipe.data.imported is not None:
        return ImportRun(inputs, plan, load_head_only(inputs.recipe.target, inputs.recipe.precompute.device), stop)
    return _RUNNERS[inputs.recipe.target.engine](inputs, plan, stop, report)


def _transformers(inputs: Stage1Inputs, plan: PrecomputePlan, stop: StopFlag, _: Report) -> ShardRunner:
    local_rank = os.environ.get("LOCAL_RANK")  # under torchrun, each process takes its own GPU
    device = resolve_device(inputs.recipe.precompute.device, None if local_rank is None else int(local_rank))
    model = load_target_model(inputs.recipe.target, inputs.spec.aux_layer_ids, str(device))
    if inputs.recipe.data.generate is None:
        return ShardRun(inputs, plan, model, stop)
    assert isinstance(model, HFEagle3TargetModel)
    return AnsweringRun(inputs, plan, model, stop)


def _vllm(inputs: Stage1Inputs, plan: PrecomputePlan, stop: StopFlag, report: Report) -> ShardRunner:
    kind = EngineRun if inputs.recipe.data.generate is None else AnsweringEngineRun
    return kind(inputs, plan, stop, report)


_RUNNERS: dict[str, Callable[[Stage1Inputs, PrecomputePlan, StopFlag, Report], ShardRunner]] = {
    "transformers": _transformers,
    "vllm": _vllm,
}
