"""The part of stage 1 that needs the target: claim a shard, run its batches, let a thread write it, publish it.

Any number of processes may do this on one folder (see `claims`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from safetensors.torch import save

from eaglepipe.cache.consistency import START_FILE, TARGET_CONFIG_FILE, VOCAB_FILE
from eaglepipe.cache.fixed_files import publish_files, record_files
from eaglepipe.cache.published import missing_shards, read_published
from eaglepipe.cache.schema import schema_files
from eaglepipe.cache.seal import HEAD_FILE
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import BackgroundShard, RefusedItem, ShardItem, ShardWriter
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.files.publish import json_bytes
from eaglepipe.precompute.claims import Worker, claimed_shard
from eaglepipe.precompute.encode import EncodedStates, RowMasks, StateEncoder, cached_samples, joined, num_refused
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.lost import check_lost
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.progress import ProgressLine
from eaglepipe.signals import StopFlag
from eaglepipe.target.model import TargetModel, TargetParts, TargetWithHead
from eaglepipe.vocab import DraftVocab, vocab_tensors


class ShardWork(ABC):
    """One process's work on the shards that are still missing, wherever their states come from."""

    activity = "precompute"

    def __init__(self, inputs: Stage1Inputs, plan: PrecomputePlan, model: TargetWithHead, stop: StopFlag) -> None:
        self._inputs, self._plan, self._target, self._stop = inputs, plan, model, stop
        self._encoder = StateEncoder(
            head_logits=model.narrow_logits,
            vocab=plan.layout.vocab,
            spec=inputs.spec,
            rule=inputs.entry_rule,
            head_chunk_rows=inputs.recipe.precompute.head_chunk_rows,
        )
        self._tokens = self._refused = 0
        self._drops = plan.layout.drops.counts.total()
        self._started = time.monotonic()

    @property
    def plan(self) -> PrecomputePlan:
        """The plan, with the draft vocabulary by which shards are encoded."""
        return self._plan

    @property
    def target(self) -> TargetParts:
        """What the cache keeps of the target besides its states."""
        return self._target

    def write_missing(self, worker: Worker) -> int:
        """Compute and publish this worker's missing shards; returns their number.

        Raises:
            StoppedError: a signal asked to stop; the shard in the making is dropped.
            DataError: more samples are lost than data.max_drop_fraction allows; the published shards stay.
        """
        folder, layout = self._plan.folder, self._plan.layout
        shards = [shard for shard in missing_shards(folder, self._plan.document) if worker.takes(shard)]
        total = sum(layout.shard_tokens(shard) for shard in shards)
        written = 0
        with ProgressLine(self.activity, total=total, unit="tok", plain_interval_seconds=5.0) as progress:
            for shard in shards:
                with claimed_shard(folder, shard) as claimed:
                    if claimed and isinstance(read_published(folder, self._plan.document, shard), str):
                        self._write(shard, progress)
                        written += 1
                        self._check_lost()
        return written

    def write_again(self, shards: Collection[int], known_of: Callable[[int], Mapping[str, ShardItem]]) -> int:
        """Publish shards anew; what is known of a shard, by sample id, is written as it is.

        Returns:
            The number of samples that were not known.

        Raises:
            StoppedError: a signal asked to stop; the shard in the making is dropped.
        """
        layout = self._plan.layout
        total, computed = sum(map(layout.shard_tokens, shards)), 0
        with ProgressLine("repair", total=total, unit="tok", plain_interval_seconds=5.0) as progress:
            for shard in shards:
                known = known_of(shard)
                ids = {layout.tokens.read(int(sample)).sample_id for group in layout.shards[shard] for sample in group}
                self._write(shard, progress, known)
                computed += len(ids - known.keys())
        return computed

    def _check_lost(self) -> None:
        allowed = self._inputs.recipe.data.max_drop_fraction * self._plan.document.samples
        if self._refused > allowed:
            check_lost(self._inputs, self._plan, report=None)

    def _write(self, shard: int, progress: ProgressLine, known: Mapping[str, ShardItem] | None = None) -> None:
        folder, settings = self._plan.folder, self._inputs.recipe.precompute
        writer = ShardWriter(folder, shard, spec=self._inputs.spec, identity=self._plan.document.identity)
        with BackgroundShard(writer, queue_jobs=settings.queue_batches) as background:
            for samples, num_tokens in self._batches(shard):
                if known and all(sample.sample_id in known for sample in samples):
                    background.submit(partial(_known_items, known, samples))
                    progress.update(num_tokens)
                    continue
                with self._stop.abandonable(self._saved):
                    encoded = self._encoded(samples)
                background.submit(partial(_known_first, known or {}, samples, encoded))
                refused = num_refused(samples, encoded)
                self._drops += refused
                self._refused += refused
                self._show(sum(len(sample.input_ids) for sample in samples), num_tokens, progress)
            for item in self._left_out(shard):
                background.submit(partial(iter, [item]))
            background.finish()

    @property
    def _saved(self) -> str:
        return f"the shards published so far stay in {self._plan.folder}"

    def _batches(self, shard: int) -> Iterator[tuple[list[TokenSample], int]]:
        """Yield the samples of each forward of a shard, and the tokens of the plan that are done with them."""
        layout = self._plan.layout
        for batch in layout.forwards(shard, self._inputs.recipe.precompute.batch_tokens):
            self._stop.raise_if_set(self._saved)
            samples = [layout.tokens.read(int(sample)) for sample in batch]
            yield samples, sum(len(sample.input_ids) for sample in samples)

    @abstractmethod
    def _encoded(self, samples: Sequence[TokenSample]) -> EncodedStates:
        """Return the rows of some samples, one after the other, as the cache stores them."""

    def _left_out(self, shard: int) -> Iterable[RefusedItem]:
        """Return what else of a shard's plan has no sample, once its batches are done."""
        return ()

    def _show(self, computed: int, num_tokens: int, progress: ProgressLine) -> None:
        self._tokens += computed
        rate = self._tokens / (time.monotonic() - self._started)
        gigabytes = self._plan.layout.cost.total * self._tokens / 1e9
        progress.update(num_tokens, f"{rate:,.0f} tok/s · {gigabytes:.3g} GB · {self._drops} dropped")


class ShardRun(ShardWork):
    """Work on shards by a forward of the target."""

    def __init__(self, inputs: Stage1Inputs, plan: PrecomputePlan, model: TargetModel, stop: StopFlag) -> None:
        super().__init__(inputs, plan, model, stop)
        self._model = model
        self._chunk_tokens = inputs.recipe.precompute.chunk_tokens

    def _encoded(self, samples: Sequence[TokenSample]) -> EncodedStates:
        if max(len(sample.input_ids) for sample in samples) > self._chunk_tokens:
            return joined([part for sample in samples for part in self._pieces(sample)])
        states = self._model.capture_tokens([sample.input_ids for sample in samples])
        return self._encoder.encode(states, RowMasks.of(samples, self._encoder.rule))

    def _pieces(self, sample: TokenSample) -> Iterator[EncodedStates]:
        """Encode each piece of a sample before the next one is read."""
        masks, start = RowMasks.of([sample], self._encoder.rule), 0
        for states in self._model.capture_pieces(sample.input_ids, self._chunk_tokens):
            self._stop.raise_if_set(self._saved)
            end = start + len(states.last_hidden)
            yield self._encoder.encode(states, masks.cut(start, end))
            start = end


def _known_items(known: Mapping[str, ShardItem], samples: list[TokenSample]) -> Iterator[ShardItem]:
    return (known[sample.sample_id] for sample in samples)


def _known_first(
    known: Mapping[str, ShardItem], samples: list[TokenSample], encoded: EncodedStates
) -> Iterator[ShardItem]:
    for item in cached_samples(samples, encoded):
        yield known.get(item.sample_id if isinstance(item, CachedSample) else item[0], item)


def publish_fixed_files(inputs: Stage1Inputs, plan: PrecomputePlan, model: TargetParts) -> None:
    """Publish the files that are made from the target; those of other workers have the same bytes."""
    files = fixed_files(inputs, plan.layout.vocab, model)
    entries = publish_files(plan.folder, files)
    if inputs.recipe.data.generate is not None:  # the counts of its vocabulary are known once all is answered
        entries = tuple(entry for entry in entries if entry.path != VOCAB_FILE)
    record_files(plan.folder, "target", plan.document.identity, entries)


def fixed_files(inputs: Stage1Inputs, vocab: DraftVocab, model: TargetParts) -> dict[str, bytes]:
    """Return the files that are made from the target, by their paths inside the cache."""
    start = model.draft_start_tensors(vocab, full_head=inputs.recipe.cache.full_head)
    files = {
        name: save({key: tensor.contiguous() for key, tensor in tensors.items()})
        for name, tensors in ((VOCAB_FILE, vocab_tensors(vocab)), (START_FILE, start))
    }
    files[TARGET_CONFIG_FILE] = json_bytes(model.config_json())
    files[HEAD_FILE] = json_bytes(asdict(model.head_spec()))
    files |= {f"tokenizer/{name}": data for name, data in (inputs.chat.files() if inputs.chat else {}).items()}
    return files | schema_files()
