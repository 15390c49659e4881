"""A folder of another tool as the corpus of a cache: every sample read once, checked, hashed and staged.

Samples that cannot be trusted are dropped by name, as rows of conversations are.

Shapes: T tokens, A aux layers, Ht the target's hidden size.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import RowError
from eaglepipe.chat.sources import source_name
from eaglepipe.chat.tokens import TokenSample, cut_sample
from eaglepipe.precompute.imported.formats import open_foreign
from eaglepipe.precompute.imported.judgement import JUDGED_SAMPLES, Judge
from eaglepipe.precompute.imported.sample import ForeignFolder, ForeignSample, NoStatesError
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import StagedStates
from eaglepipe.progress import ProgressLine
from eaglepipe.target.head_only import load_head_only

NO_STATES = "no_states"
"""Reason of rows that the tool has not computed, which is no fault."""
_PROBABILITIES = (
    "the target's probabilities are stored, not its last hidden states. Lacking: ids of first tokens (0 stands for "
    "them, and no draft reads them), the target's choice outside the draft vocabulary (the first other id stands for "
    "it), and the draft vocabulary's mass (the largest possible stands for it)"
)
_LOOKED_AT = 8  # samples for each that is judged, if some are faulty


class ForeignCorpus:
    """The samples of a folder, in order; one is in memory at a time, or a few while they are judged."""

    def __init__(self, inputs: Stage1Inputs, drops: DropLog, report: Callable[[str], None]) -> None:
        source = inputs.recipe.data.imported
        assert source is not None
        self._inputs, self._source, self._drops, self._report = inputs, source, drops, report
        self._folder, self._label = open_foreign(source), source_name(source)
        self._folder.check(inputs.spec)
        self._state = xxhash.xxh3_128(json.dumps(self._folder.selected_token_ids).encode())

    def samples(self) -> Iterator[TokenSample]:
        """Yield the tokens of every sound sample; the others go to the log."""
        recipe = self._inputs.recipe
        judge: Judge | None = None
        if self._folder.last_hidden is not None:
            head = load_head_only(recipe.target, recipe.precompute.device)
            judge = Judge.of(islice(self._first_sound(), JUDGED_SAMPLES), head, self._folder.last_hidden)
        note = _PROBABILITIES if judge is None else judge.note
        self._report(f"{self._source.format}: {note}")
        with ProgressLine("read", total=None, unit="samples", plain_interval_seconds=5.0) as progress:
            for sample_id in self._folder.sample_ids():
                where = self._folder.where(sample_id)
                kept = self._staged(sample_id, where, judge)
                if isinstance(kept, TokenSample):
                    yield kept
                else:
                    self._drops.add(kept[0], where=where, source=self._label, detail=kept[1])
                progress.update(1, f"{self._drops.counts.total()} dropped")

    def hexdigest(self) -> str:
        """Return the fingerprint of the samples so far: ids, all stored tensors, and the reasons of drops."""
        return self._state.hexdigest()

    def _staged(self, sample_id: str, where: str, judge: Judge | None) -> TokenSample | tuple[str, str]:
        """Return the tokens of a sample, or why it is dropped."""
        try:
            sample = self._read(sample_id, where)
            if judge is not None:
                judge.check(sample, where)
        except NoStatesError as error:
            return NO_STATES, str(error)
        except RowError as error:
            self._add(sample_id, error.reason)
            return error.reason, str(error)
        digest, form = sample.digest(), "" if judge is None else judge.form_of(sample)
        self._add(sample_id, f"{digest} {form}")
        whole = StagedStates(
            sample_id=f"{self._label}:{sample_id}",
            source=self._label,
            input_ids=sample.input_ids.numpy().astype(np.int32),
            turns=_turns(sample),
            digest=digest,
            last_hidden=form,
        )
        return cut_sample(whole, self._inputs.recipe.data, self._inputs.spec.vocab_size)

    def _read(self, sample_id: str, where: str) -> ForeignSample:
        if not sample_id.isascii() and "\ud800" <= max(sample_id) <= "\udfff":
            raise RowError("unreadable_file", f"{where}: its name is not UTF-8")
        return checked_sample(self._folder, sample_id, where, self._inputs)

    def _first_sound(self) -> Iterator[ForeignSample]:
        for sample_id in islice(self._folder.sample_ids(), _LOOKED_AT * JUDGED_SAMPLES):
            try:
                yield self._read(sample_id, self._folder.where(sample_id))
            except (RowError, NoStatesError):
                continue

    def _add(self, *parts: str) -> None:
        for part in parts:
            data = part.encode(errors="surrogateescape")
            self._state.update(len(data).to_bytes(8, "little") + data)


def checked_sample(folder: ForeignFolder, sample_id: str, where: str, inputs: Stage1Inputs) -> ForeignSample:
    """Read a sample and compare its tensors with each other and with the target.

    Raises:
        RowError: it cannot be used.
        NoStatesError: it has no states.
    """
    sample, spec = folder.read(sample_id), inputs.spec
    num_tokens = len(sample.input_ids) if sample.input_ids.dim() == 1 else -1
    mask = sample.loss_mask
    if inputs.recipe.data.mask == "all":
        mask = torch.ones(max(0, num_tokens), dtype=torch.bool)
    if mask is None:
        raise RowError(
            "missing_field",
            f"{where}: lacks loss_mask; set data.mask=all to supervise every token, prompts too, or make it again: "
            f"{folder.mask_advice}",
        )
    layers = spec.aux_layer_ids
    if sample.aux.shape[1] != len(layers) or sample.aux.shape[2] != spec.hidden_size:
        raise RowError(
            "wrong_shape",
            f"{where}: {sample.aux.shape[1]} aux layers of width {sample.aux.shape[2]:,}, and cache.aux_layer_ids "
            f"{list(layers)} of this target are {len(layers)} of width {spec.hidden_size:,}",
        )
    lengths = {"input_ids": num_tokens, "loss_mask": len(mask) if mask.dim() == 1 else -1}
    teacher = sample.probs if sample.last_hidden is None else sample.last_hidden
    assert teacher is not None
    lengths |= {"aux": len(sample.aux), "last_hidden": len(teacher)}
    if len(set(lengths.values())) > 1 or num_tokens < 1:
        counted = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise RowError("wrong_shape", f"{where}: its tensors have other numbers of tokens: {counted}")
    if sample.last_hidden is not None and sample.last_hidden.shape[1:] != (spec.hidden_size,):
        raise RowError("wrong_shape", f"{where}: last hidden states of shape {list(sample.last_hidden.shape)}")
    low, high = int(sample.input_ids.min()), int(sample.input_ids.max())
    if low < 0 or high >= spec.vocab_size:
        raise RowError(
            "token_out_of_range",
            f"{where}: token id {low if low < 0 else high} is outside the target's vocabulary of {spec.vocab_size}: "
            "another tokenizer?",
        )
    finite = torch.isfinite(sample.aux).flatten(1).all(dim=1) & torch.isfinite(teacher).flatten(1).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise RowError("not_finite", f"{where}: its states or probabilities hold NaN or Inf from token {first} on")
    return replace(sample, loss_mask=mask != 0)


def _turns(sample: ForeignSample) -> NDArray[np.int32]:
    """Number the runs of tokens in the loss mask from 1 on; others are 0."""
    assert sample.loss_mask is not None
    mask = sample.loss_mask.numpy()
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    turns: NDArray[np.int32] = np.where(mask, np.cumsum(begins), 0).astype(np.int32)
    return turns
