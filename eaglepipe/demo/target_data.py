"""The target's training examples: chat rows as token ids with the mask of what the assistant says.

A step takes rows in a random order, then sorts only its own, so that little is padded and every step stays a fair draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

ENCODE_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation: `input_ids` int64 [T], `is_answer` bool [T]."""

    input_ids: Tensor
    is_answer: Tensor


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Right-padded examples: `input_ids` int64 [B, T]; `is_label` bool [B, T-1], where token t+1 is an answer's."""

    input_ids: Tensor
    is_label: Tensor
    num_tokens: int


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> list[Example]:
    """Chat rows through the tokenizer's template, whose generation markers make the mask."""
    examples = []
    for start in range(0, len(rows), ENCODE_ROWS):
        encoded = tokenizer.apply_chat_template(
            [row["messages"] for row in rows[start : start + ENCODE_ROWS]],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        examples += [Example(input_ids=torch.tensor(ids), is_answer=torch.tensor(mask).bool()) for ids, mask in pairs]
    return examples


def steps(examples: Sequence[Example], *, rows: int, micro_rows: int, seed: int) -> Iterator[list[MicroBatch]]:
    """Endless optimizer steps of `rows` examples each, in micro-batches of rows of like length."""
    epoch, waiting = 0, list[int]()
    while True:
        while len(waiting) < rows:
            order = list(range(len(examples)))
            Random(f"{seed}/order/{epoch}").shuffle(order)
            waiting, epoch = waiting + order, epoch + 1
        chosen = sorted((examples[index] for index in waiting[:rows]), key=lambda example: len(example.input_ids))
        waiting = waiting[rows:]
        yield [collate(chosen[start : start + micro_rows]) for start in range(0, rows, micro_rows)]


def collate(examples: Sequence[Example]) -> MicroBatch:
    """Pad on the right with id 0: under a causal mask nothing that counts can see it."""
    lengths = [len(example.input_ids) for example in examples]
    input_ids = torch.zeros(len(examples), max(lengths), dtype=torch.int64)
    is_answer = torch.zeros(input_ids.shape, dtype=torch.bool)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[row, :length] = example.input_ids
        is_answer[row, :length] = example.is_answer
    return MicroBatch(input_ids=input_ids, is_label=is_answer[:, 1:], num_tokens=sum(lengths))
