"""Shards from the stored states of another tool: no forward, one sample in memory at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from eaglepipe.chat.faults import RowError
from eaglepipe.chat.sources import source_name
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import CacheError, DataError
from eaglepipe.precompute.encode import EncodedStates, RowMasks
from eaglepipe.precompute.imported.corpus import checked_sample
from eaglepipe.precompute.imported.formats import open_foreign
from eaglepipe.precompute.imported.judgement import normed
from eaglepipe.precompute.imported.nemo import probability_logits
from eaglepipe.precompute.imported.sample import ForeignSample, LastHidden, NoStatesError
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.precompute.shard_run import ShardWork
from eaglepipe.precompute.staging import StagedStates
from eaglepipe.signals import StopFlag
from eaglepipe.target.head_only import HeadOnlyTarget
from eaglepipe.target.model import CapturedStates


class ImportRun(ShardWork):
    """One process's work on the shards of an imported cache."""

    activity = "import"

    def __init__(self, inputs: Stage1Inputs, plan: PrecomputePlan, head: HeadOnlyTarget, stop: StopFlag) -> None:
        source = inputs.recipe.data.imported
        assert source is not None
        self._head, self._foreign, self._label = head, open_foreign(source), source_name(source)
        if (selected := self._foreign.selected_token_ids) is not None:
            plan = with_vocabulary(plan, selected)
        super().__init__(inputs, plan, head, stop)
        if selected is not None:
            self._encoder = replace(self._encoder, head_logits=probability_logits(plan.layout.vocab))

    def _batches(self, shard: int) -> Iterator[tuple[list[TokenSample], int]]:
        layout = self._plan.layout
        for batch in layout.forwards(shard, batch_tokens=1):
            self._stop.raise_if_set(self._saved)
            samples = [layout.tokens.read(int(sample)) for sample in batch]
            yield samples, sum(len(sample.input_ids) for sample in samples)

    def _encoded(self, samples: Sequence[TokenSample]) -> EncodedStates:
        (sample,) = samples
        assert isinstance(sample, StagedStates)
        stored, num_tokens = self._read(sample), len(sample.input_ids)
        aux = stored.aux[:num_tokens].to(self._head.device, _wider(stored.aux.dtype, self._head.dtype))
        states = CapturedStates(aux=aux, last_hidden=self._teacher(stored, sample)[:num_tokens])
        return self._encoder.encode(states, RowMasks.of(samples, self._encoder.rule))

    def _teacher(self, stored: ForeignSample, sample: StagedStates) -> torch.Tensor:
        """Return what the encoder's head turns into logits: last hidden states, or probabilities."""
        if stored.last_hidden is None:
            assert stored.probs is not None
            return stored.probs.to(self._head.device)
        form: LastHidden = "before_norm" if sample.last_hidden == "before_norm" else "after_norm"
        return normed(stored.last_hidden, self._head, form)

    def _read(self, sample: StagedStates) -> ForeignSample:
        """Read a sample once more.

        Raises:
            CacheError: it is not the one that was staged.
        """
        own_id = sample.sample_id.removeprefix(f"{self._label}:")
        where = self._foreign.where(own_id)
        try:
            stored = checked_sample(self._foreign, own_id, where, self._inputs)
        except (RowError, NoStatesError) as error:
            raise DataError(
                f"{self._foreign.root}: {error}; it was sound when the cache was begun. {self._saved}"
            ) from None
        if stored.digest() != sample.digest:
            raise CacheError(
                f"{self._foreign.root}: {where} changed since the cache was begun; put it back, or import the folder "
                "as it is now, by the same command, into a cache of its own"
            )
        return stored


def with_vocabulary(plan: PrecomputePlan, selected: Sequence[int]) -> PrecomputePlan:
    """Return a plan with another draft vocabulary, by its ascending ids."""
    ids, mask = torch.tensor(selected), torch.zeros(plan.layout.vocab.target_size, dtype=torch.bool)
    mask[ids] = True
    vocab = replace(plan.layout.vocab, selected_token_ids=ids, selected_token_mask=mask)
    return replace(plan, layout=replace(plan.layout, vocab=vocab))


def _wider(stored: torch.dtype, of_target: torch.dtype) -> torch.dtype:
    return torch.promote_types(stored, of_target)
