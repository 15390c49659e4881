"""Is the demo's target worth drafting for? Its own greedy answers to held-back questions, judged by plain counts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOOP_NGRAM, LOOP_REPEATS = 8, 3


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One greedy answer; `ended` says that the end-of-turn token came within the limit."""

    question: str
    reference: str
    text: str
    num_tokens: int
    ended: bool
    loops: bool


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """Shares over all answers; `exact_share` and `mean_similarity` (word by word) compare with the true answers."""

    num_answers: int
    ended_share: float
    looping_share: float
    distinct_share: float
    exact_share: float
    mean_similarity: float
    mean_tokens: float
    answers: tuple[Answer, ...]


def quality_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    *,
    max_prompts: int = 200,
    max_new_tokens: int = 160,
    batch_size: int = 50,
    seed: int = 0,
) -> QualityReport:
    """Greedy first answers to a seeded choice of corpus rows {messages: [system?, user, assistant, ...]}."""
    chosen = Random(seed).sample(list(prompts), min(max_prompts, len(prompts)))
    chosen.sort(key=lambda row: sum(len(message["content"]) for message in _opening(row)))
    answers: list[Answer] = []
    for start in range(0, len(chosen), batch_size):
        answers += _answer(model, tokenizer, chosen[start : start + batch_size], max_new_tokens)
    count = len(answers)
    return QualityReport(
        num_answers=count,
        ended_share=sum(answer.ended for answer in answers) / count,
        looping_share=sum(answer.loops for answer in answers) / count,
        distinct_share=len({answer.text for answer in answers}) / count,
        exact_share=sum(answer.text == answer.reference for answer in answers) / count,
        mean_similarity=sum(similarity(answer.text, answer.reference) for answer in answers) / count,
        mean_tokens=sum(answer.num_tokens for answer in answers) / count,
        answers=tuple(answers),
    )


def is_loop(token_ids: Sequence[int]) -> bool:
    """Whether some run of 8 tokens occurs at least three times."""
    runs = zip(*(token_ids[offset:] for offset in range(LOOP_NGRAM)), strict=False)
    return max(Counter(runs).values(), default=0) >= LOOP_REPEATS


def similarity(text: str, reference: str) -> float:
    """Share of the words of both texts that match in order, from 0 to 1."""
    return SequenceMatcher(None, text.split(), reference.split(), autojunk=False).ratio()


def _opening(row: dict[str, Any]) -> list[dict[str, str]]:
    """The messages before the first answer."""
    first_answer = next(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
    return list(row["messages"][:first_answer])


@torch.no_grad()
def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_new_tokens: int
) -> list[Answer]:
    openings = [_opening(row) for row in rows]
    inputs = tokenizer.apply_chat_template(
        openings,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    answers = []
    for row, opening, ids in zip(rows, openings, generated[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        ended = tokenizer.eos_token_id in ids
        kept = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
        answers.append(
            Answer(
                question=opening[-1]["content"],
                reference=row["messages"][len(opening)]["content"],
                text=tokenizer.decode(kept),
                num_tokens=len(kept) + ended,
                ended=ended,
                loops=is_loop(kept),
            )
        )
    return answers
