"""Stage 1 through an engine, whose connector encodes and publishes the shards that this process claims and feeds."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

from eaglepipe.cache.published import missing_shards, read_published
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache.writer import ShardItem
from eaglepipe.files.leftovers import held_temporary, leftovers, release, remove_abandoned
from eaglepipe.precompute.claims import Worker, claimed_shard
from eaglepipe.precompute.engine.feed import Claim, Feed
from eaglepipe.precompute.engine.job import JOB, CaptureJob
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.progress import ProgressLine
from eaglepipe.signals import StopFlag
from eaglepipe.target.head_only import HeadOnlyTarget, load_head_only
from eaglepipe.vllm_engine.extraction import check_extraction
from eaglepipe.vllm_engine.requirements import require_vllm
from eaglepipe.vllm_engine.session import open_engine

_ROOM = __package__
_MOST_SEQUENCES = 256


class EngineRun:
    """One process's work on shards, done by an engine that starts when there is some."""

    def __init__(
        self, inputs: Stage1Inputs, plan: PrecomputePlan, stop: StopFlag, report: Callable[[str], None]
    ) -> None:
        """Raises EaglepipeError if vLLM is missing or has no states of the target, or its head cannot be read alone."""
        require_vllm()
        target = inputs.recipe.target
        check_extraction(inputs.model_config, target.engine_args, path=target.path)
        self._inputs, self._plan, self._stop, self._report = inputs, plan, stop, report
        self._saved = f"the shards published so far stay in {plan.folder}"
        with stop.abandonable(self._saved):
            self._head = load_head_only(inputs.recipe.target)

    @property
    def plan(self) -> PrecomputePlan:
        """The plan, with the draft vocabulary by which shards are encoded."""
        return self._plan

    @property
    def target(self) -> HeadOnlyTarget:
        """The target without its layers."""
        return self._head

    def write_missing(self, worker: Worker) -> int:
        """Compute and publish this worker's missing shards; returns their number.

        Raises:
            StoppedError: a signal asked to stop; the shards in the making are dropped.
            DataError: more samples are lost than data.max_drop_fraction allows; the published shards stay.
            EaglepipeError: the engine died; the published shards stay.
        """
        folder, document = self._plan.folder, self._plan.document
        shards = [shard for shard in missing_shards(folder, document) if worker.takes(shard)]
        return self._write(shards, "precompute", self._claims(shards))

    def write_again(self, shards: Collection[int], known_of: Callable[[int], Mapping[str, ShardItem]]) -> int:
        """Publish shards anew; what is known of a shard, by sample id, is written as it is.

        Returns:
            The number of samples that were not known.

        Raises:
            as `write_missing`.
        """
        known = {shard: known_of(shard) for shard in shards}
        self._write(list(shards), "repair", (Claim(shard=shard, known=items) for shard, items in known.items()))
        num_samples = sum(sum(map(len, self._plan.layout.shards[shard])) for shard in shards)
        return num_samples - sum(map(len, known.values()))

    def _write(self, shards: list[int], title: str, claims: Iterator[Claim]) -> int:
        if not shards:
            return 0
        total = sum(map(self._plan.layout.shard_tokens, shards))
        try:
            with (
                _spare_folder(self._plan.folder / WORK_FOLDER) as spare,
                self._engine() as engine,
                ProgressLine(title, total=total, unit="tok", plain_interval_seconds=5.0) as progress,
                Feed(self._inputs, self._plan, engine, progress, spare) as feed,
            ):
                return feed.run(claims)
        finally:
            remove_abandoned(leftovers(self._plan.folder))  # of the shards in the making, whose writer has ended

    def _engine(self) -> Any:
        inputs, plan = self._inputs, self._plan
        job = CaptureJob.of(inputs, plan.folder, plan.document.identity)
        longest = self._longest()
        return open_engine(
            inputs.recipe.target,
            self._head.target.folder,
            max_length=longest,
            speculative={
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": job.boundaries}},
            },
            kv_transfer={
                "kv_connector": "CaptureConnector",
                "kv_connector_module_path": f"{_ROOM}.connector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {JOB: job.to_text()},
            },
            worker_extension=f"{_ROOM}.extension.CaptureExtension",
            defaults=self._defaults(),
            overrides={"max_model_len": longest},
            device=inputs.recipe.precompute.device,
            saved=self._saved,
            stop=self._stop,
            report=self._report,
        )

    def _longest(self) -> int:
        """Return the tokens of the longest request."""
        return int(self._plan.layout.statistics.num_tokens.max()) + 1  # an engine generates a token at least

    def _defaults(self) -> dict[str, Any]:
        """Return arguments of the engine that a recipe may set otherwise."""
        batch_tokens = self._inputs.recipe.precompute.batch_tokens
        return {"max_num_batched_tokens": batch_tokens, "max_num_seqs": min(_MOST_SEQUENCES, batch_tokens)}

    def _claims(self, shards: list[int]) -> Iterator[Claim]:
        """Yield the shards that no other process holds or has published."""
        folder, document = self._plan.folder, self._plan.document
        for shard in shards:
            with ExitStack() as stack:
                claimed = stack.enter_context(claimed_shard(folder, shard))
                if claimed and isinstance(read_published(folder, document, shard), str):
                    yield Claim(shard=shard, lock=stack.pop_all())


@contextmanager
def _spare_folder(work: Path) -> Iterator[Path]:
    """Make a folder that is removed with the block, or by the next run if this process is killed."""
    work.mkdir(parents=True, exist_ok=True)
    folder, hold = held_temporary(work / "known", Path.mkdir)
    try:
        yield folder
    finally:
        release(hold)
        rmtree(folder, ignore_errors=True)
