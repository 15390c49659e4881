"""What is known once all prompts are answered: `answers.jsonl`, and the vocabulary with the counts of all answers."""

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors.torch import save

from eaglepipe.cache.consistency import VOCAB_FILE
from eaglepipe.cache.fixed_files import publish_files
from eaglepipe.cache.manifest import SHARDS_FOLDER, FileEntry
from eaglepipe.cache.published import read_published
from eaglepipe.cache.seal import UnsoundError
from eaglepipe.cache.writer import sidecar_path
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.files.publish import PendingFile, explained_os_errors
from eaglepipe.generation.answer_log import json_line
from eaglepipe.precompute.answers.log import ShardAnswers
from eaglepipe.precompute.answers.vocabulary import known_vocabulary
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.vocab import add_counts, vocab_tensors

ANSWERS_FILE = "answers.jsonl"


def publish_answers(inputs: Stage1Inputs, plan: PrecomputePlan) -> tuple[FileEntry, ...]:
    """Publish the rows of all samples, in the cache's order, and the vocabulary; returns their entries.

    Raises:
        UnsoundError: shards whose answers are lost, or are not those that they hold.
    """
    folder = plan.folder
    file, digest, num_bytes = PendingFile(folder / ANSWERS_FILE), xxhash.xxh3_128(), 0
    counts = np.zeros(inputs.spec.vocab_size, np.int64)
    problems: dict[str, str] = {}
    try:
        for shard in range(plan.document.shards):
            lines = _shard_lines(inputs, plan, shard, counts)
            if lines is None:
                name = f"{SHARDS_FOLDER}/{sidecar_path(folder, shard).name}"
                problems[name] = "its answers are lost, or others than it holds"
                continue
            digest.update(lines)
            num_bytes += len(lines)
            with explained_os_errors(file.path):
                file.stream.write(lines)
        if problems:
            raise UnsoundError(folder, problems)
        file.publish()
    finally:
        file.abort()
    answers = FileEntry(path=ANSWERS_FILE, bytes=num_bytes, xxh3_128=digest.hexdigest())
    vocab = known_vocabulary(inputs, plan)
    tensors = {**vocab_tensors(vocab), "counts": torch.from_numpy(counts)}
    return (answers, *publish_files(folder, {VOCAB_FILE: save(tensors)}))


def _shard_lines(inputs: Stage1Inputs, plan: PrecomputePlan, shard: int, counts: NDArray[np.int64]) -> bytes | None:
    """Return the rows of a shard's samples and count their tokens; None if they are not those of its log."""
    sidecar = read_published(plan.folder, plan.document, shard)
    if isinstance(sidecar, str):
        return None
    known, lines, tokens = ShardAnswers(plan.folder, shard).read(), [], []
    stored = dict(zip(sidecar.index.sample_ids, sidecar.index.num_tokens, strict=True))
    layout = plan.layout
    for number in (int(number) for group in layout.shards[shard] for number in group):
        outcome = known.get(layout.tokens.read(number).sample_id)
        if outcome is None:
            return None
        rows = {row["id"]: row for row in outcome.rows}
        for sample in outcome.samples(inputs):
            if isinstance(sample, TokenSample) and sample.sample_id in stored:
                if stored.pop(sample.sample_id) != len(sample.input_ids):
                    return None
                lines.append(json_line(rows[sample.sample_id]))
                tokens.append(sample.input_ids[sample.turns > 0])
    if stored:
        return None
    for token_ids in tokens:
        add_counts(counts, token_ids)
    return b"".join(lines)
