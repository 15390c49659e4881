"""Quality of the target's own answers to held-back questions, by plain counts."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

LOOP_NGRAM, LOOP_REPEATS = 8, 3
MAX_ANSWERS = 1000

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AnswerQuality:
    """Shares of the answers that loop and that are unlike each other, and of the true answers' words that they hold."""

    num_answers: int
    looping_share: float
    distinct_share: float
    shared_words: float


def measure_answers(
    regenerated: Path,
    references: Iterable[Row],
    tokenize: Callable[[str], Sequence[object]],
) -> AnswerQuality:
    """Compare a regenerated JSONL file with the corpus rows it answers, matched by their ids' last part."""
    references_by_id = {row["id"]: answers_of(row) for row in references}
    with regenerated.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in islice(stream, MAX_ANSWERS)]
    pairs = [
        (answer, reference)
        for row in rows
        for answer, reference in zip(answers_of(row), references_by_id[_source_id(row)], strict=False)
    ]
    count = max(1, len(pairs))
    return AnswerQuality(
        num_answers=len(pairs),
        looping_share=sum(is_loop(tokenize(answer)) for answer, _ in pairs) / count,
        distinct_share=len({answer for answer, _ in pairs}) / count,
        shared_words=sum(shared_words(answer, reference) for answer, reference in pairs) / count,
    )


def _source_id(row: Row) -> str:
    """Return the id of the corpus row that a regenerated row, `source:id` or `source:id#2`, answers."""
    return str(row["id"]).split(":", 1)[-1].partition("#")[0]


def answers_of(row: Row) -> list[str]:
    """Return the assistant's messages."""
    return [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def is_loop(items: Sequence[object]) -> bool:
    """Return whether some run of 8 items occurs at least three times."""
    runs = zip(*(items[offset:] for offset in range(LOOP_NGRAM)), strict=False)
    return max(Counter(runs).values(), default=0) >= LOOP_REPEATS


def shared_words(text: str, reference: str) -> float:
    """Return the share of the reference's words that the text holds too, from 0 to 1."""
    words = Counter(reference.split())
    return (words & Counter(text.split())).total() / max(1, words.total())
