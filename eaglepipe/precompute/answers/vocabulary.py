"""The draft vocabulary of answers that are not known beforehand: counted on the first of them, and fixed from then on.

The first prompts in the order of the plan are answered before any shard is encoded; their answers are kept in the logs
of their shards. A vocabulary of all tokens needs none of it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from eaglepipe.cache.manifest import Document, document_bytes, load_document
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.publish import publish_bytes
from eaglepipe.precompute.answers.log import ShardAnswers
from eaglepipe.precompute.answers.outcome import Answered
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import CorpusLayout, Group
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.progress import ProgressLine
from eaglepipe.signals import StopFlag
from eaglepipe.vocab import DraftVocab, add_counts, build_draft_vocab

FIRST_PROMPTS = 4096
"""Prompts whose answers choose the vocabulary: some hundred thousand tokens, of which few new ones come later."""
_VOCABULARY = f"{WORK_FOLDER}/vocabulary.json"
_WAIT_SECONDS = 0.5


class ChosenVocab(Document):
    """`work/vocabulary.json`: the draft vocabulary, and what it was counted on."""

    schema_version: int
    identity: str
    prompts: int
    tokens: int
    selected_token_ids: tuple[int, ...]


class Answers(Protocol):
    """Whoever answers the prompts of a shard."""

    def __call__(self, shard: int, numbers: Group) -> list[Answered]:
        """Return the outcomes of prompts of a shard, by their numbers."""


def with_vocabulary(
    inputs: Stage1Inputs, plan: PrecomputePlan, answers: Answers, *, batch_tokens: int | None, stop: StopFlag
) -> PrecomputePlan:
    """Return the plan with its draft vocabulary, which is chosen now if no other process has.

    Args:
        batch_tokens: of prompts that are answered together; None: all of a shard.
    """
    if inputs.spec.draft_vocab_size == inputs.spec.vocab_size:
        return plan
    path = plan.folder / _VOCABULARY
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    while True:
        try:
            with lock.acquire(timeout=_WAIT_SECONDS):
                chosen = _read(path, plan.document.identity)
                if chosen is None:
                    chosen = _choose(inputs, plan, answers, batch_tokens, stop)
                    publish_bytes(path, document_bytes(chosen))
                break
        except Timeout:
            stop.raise_if_set("another process counts the draft vocabulary")
    return replace(plan, layout=replace(plan.layout, vocab=_vocab(chosen, inputs.spec.vocab_size)))


def known_vocabulary(inputs: Stage1Inputs, plan: PrecomputePlan) -> DraftVocab:
    """Return the draft vocabulary of a cache whose prompts are all answered, without its counts."""
    if inputs.spec.draft_vocab_size == inputs.spec.vocab_size:
        return plan.layout.vocab

    def logged(shard: int, numbers: Group) -> list[Answered]:
        known = ShardAnswers(plan.folder, shard).read()
        return [known[plan.layout.tokens.read(int(number)).sample_id] for number in numbers]

    chosen = _read(plan.folder / _VOCABULARY, plan.document.identity)
    if chosen is None:  # lost; the same answers choose the same
        chosen = _choose(inputs, plan, logged, plan.layout.group_tokens, StopFlag())
    return _vocab(chosen, inputs.spec.vocab_size)


def first_groups(layout: CorpusLayout) -> Iterator[tuple[int, Group]]:
    """Yield the groups of the first prompts, each with its shard."""
    left = FIRST_PROMPTS
    for shard, groups in enumerate(layout.shards):
        for group in groups:
            if left <= 0:
                return
            yield shard, group[:left]
            left -= len(group)


def count_answers(inputs: Stage1Inputs, outcomes: list[Answered], counts: NDArray[np.int64]) -> None:
    """Add the assistant tokens of answers to counts [V]."""
    for outcome in outcomes:
        for sample in outcome.samples(inputs):
            if isinstance(sample, TokenSample):
                add_counts(counts, sample.input_ids[sample.turns > 0])


def _choose(
    inputs: Stage1Inputs, plan: PrecomputePlan, answers: Answers, batch_tokens: int | None, stop: StopFlag
) -> ChosenVocab:
    counts, num_prompts = np.zeros(inputs.spec.vocab_size, np.int64), 0
    groups = list(first_groups(plan.layout))
    total = sum(len(group) for _, group in groups)
    if batch_tokens is None:
        shards = sorted({shard for shard, _ in groups})
        groups = [(shard, np.concatenate([group for own, group in groups if own == shard])) for shard in shards]
    with ProgressLine("vocabulary", total=total, unit="prompts", plain_interval_seconds=5.0) as progress:
        for shard, group in groups:
            for part in [group] if batch_tokens is None else plan.layout.parts(group, batch_tokens):
                stop.raise_if_set(f"the answers so far stay in {plan.folder}")
                count_answers(inputs, answers(shard, part), counts)
                num_prompts += len(part)
                progress.update(len(part))
    vocab = build_draft_vocab(counts, inputs.spec.draft_vocab_size, inputs.spec.vocab_size, inputs.special_ids)
    return ChosenVocab(
        schema_version=SCHEMA_VERSION,
        identity=plan.document.identity,
        prompts=num_prompts,
        tokens=int(counts.sum()),
        selected_token_ids=tuple(vocab.selected_token_ids.tolist()),
    )


def _read(path: Path, identity: str) -> ChosenVocab | None:
    try:
        chosen = load_document(path, ChosenVocab)
    except (CacheError, CorruptError):  # absent or damaged: the same answers choose the same
        return None
    return chosen if chosen.identity == identity else None


def _vocab(chosen: ChosenVocab, vocab_size: int) -> DraftVocab:
    ids = torch.tensor(chosen.selected_token_ids, dtype=torch.int64)
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[ids] = True
    counts = torch.zeros(vocab_size, dtype=torch.int64)  # known once all is answered
    return DraftVocab(selected_token_ids=ids, selected_token_mask=mask, counts=counts)
