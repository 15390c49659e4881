"""The part of stage 1 that needs the target: claim a shard, run its batches, let a thread write it, publish it.

Any number of processes may do this on one folder: a shard is claimed through a file lock that ends with its process.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from eaglepipe.cache.background import BackgroundShard
from eaglepipe.cache.consistency import START_FILE, TARGET_CONFIG_FILE, VOCAB_FILE
from eaglepipe.cache.reader import missing_shards
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache.seal import HEAD_FILE
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache.writer import ShardWriter, sidecar_path
from eaglepipe.files.publish import publish_bytes, publish_json
from eaglepipe.precompute.batch_job import Encoding, capture_batch
from eaglepipe.precompute.batches import Batch
from eaglepipe.precompute.inputs import Inputs
from eaglepipe.precompute.plan import Work
from eaglepipe.progress import ProgressLine
from eaglepipe.resources import schema_folder
from eaglepipe.signals import StopFlag
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import TargetModel
from eaglepipe.vocab import vocab_tensors


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Process `rank` of `count` that share a cache: it takes the shards with number % count == rank."""

    rank: int = 0
    count: int = 1

    def takes(self, shard: int) -> bool:
        return shard % self.count == self.rank


class ShardRun:
    """One process's work on the shards that are still missing."""

    def __init__(self, inputs: Inputs, work: Work, model: HFEagle3TargetModel, stop: StopFlag) -> None:
        self._inputs, self._work, self._model, self._stop = inputs, work, model, stop
        self._encoding = Encoding(
            spec=inputs.spec,
            sparse_rule=inputs.sparse_rule,
            end_of_turn=inputs.chat.end_of_turn if inputs.chat else None,
        )
        self._tokens = 0
        self._drops = sum(work.plan.drops.values())
        self._started = time.monotonic()

    def write_missing(self, worker: Worker) -> int:
        """Compute and publish this worker's missing shards; returns how many.

        Raises:
            StoppedError: a signal asked to stop; the shard in the making is dropped.
        """
        work = self._work
        todo = [shard for shard in missing_shards(work.folder, work.plan) if worker.takes(shard)]
        total = sum(work.shard_tokens(shard) for shard in todo)
        written = 0
        with ProgressLine("precompute", total=total, unit="tok", plain_interval_seconds=5.0) as progress:
            for shard in todo:
                with _claim(work.folder, shard) as claimed:
                    if claimed and not sidecar_path(work.folder, shard).exists():
                        self._write(shard, progress)
                        written += 1
        return written

    def _write(self, shard: int, progress: ProgressLine) -> None:
        inputs, work = self._inputs, self._work
        settings = inputs.recipe.precompute
        writer = ShardWriter(work.folder, shard, spec=inputs.spec, identity=inputs.identity)
        with BackgroundShard(writer, queue_jobs=settings.queue_batches) as background:
            for batch in work.shards[shard]:
                for part in self._parts(batch):
                    self._stop.raise_if_set(f"the shards published so far stay in {work.folder}")
                    samples = [work.tokens.read(int(sample)) for sample in part]
                    captured = capture_batch(
                        self._model, samples, work.vocab, self._encoding, head_chunk_rows=settings.head_chunk_rows
                    )
                    background.submit(captured.samples)
                    self._drops += captured.num_refused
                    self._show(len(captured.supervised), progress)
            background.finish()

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The plan's batch as it is, or in parts where this run's budget is smaller than the plan's."""
        budget = self._inputs.recipe.precompute.batch_tokens
        longest = int(self._work.statistics.num_tokens[batch].max())
        rows = len(batch) if budget >= self._work.plan.batch_tokens else max(1, budget // longest)
        for start in range(0, len(batch), rows):
            yield batch[start : start + rows]

    def _show(self, num_tokens: int, progress: ProgressLine) -> None:
        self._tokens += num_tokens
        rate = self._tokens / (time.monotonic() - self._started)
        gigabytes = self._work.cost.total * self._tokens / 1e9
        progress.update(num_tokens, f"{rate:,.0f} tok/s · {gigabytes:.3g} GB · {self._drops} dropped")


@contextmanager
def _claim(folder: Path, shard: int) -> Iterator[bool]:
    """A lock that ends with its process; False where another process holds it."""
    locks = folder / WORK_FOLDER / "claims"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{shard:05d}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def publish_fixed_files(inputs: Inputs, work: Work, model: HFEagle3TargetModel) -> None:
    """All that is not a shard; workers publish the same bytes, so who comes last does not matter."""
    folder = work.folder
    vocab = vocab_tensors(work.vocab)
    start = model.draft_start_tensors(work.vocab, full_head=inputs.recipe.cache.full_head)
    for name, tensors in ((VOCAB_FILE, vocab), (START_FILE, start)):
        publish_bytes(folder / name, save({key: tensor.contiguous() for key, tensor in tensors.items()}))
    publish_json(folder / TARGET_CONFIG_FILE, _config_json(model.target))
    publish_json(folder / HEAD_FILE, asdict(model.head_spec()))
    for name, data in inputs.chat.files().items() if inputs.chat else ():
        publish_bytes(folder / "tokenizer" / name, data)
    source = schema_folder(SCHEMA_VERSION)
    for path in (*source.glob("*.json"), source.parent / "README.md"):
        publish_bytes(folder / "schema" / path.name, path.read_bytes())


def _config_json(target: TargetModel) -> dict[str, Any]:
    fields: dict[str, Any] = target.model.config.to_dict()
    fields.pop("_name_or_path", None)
    return {**fields, "architectures": target.architectures}
