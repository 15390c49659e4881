"""Repeated prompts, against the Jaccard similarity of all pairs."""

import random
from functools import cache

import pytest

from eaglepipe.generation.synthesis.duplicates import SeenTexts, normalised

WORDS = [
    "who",
    "what",
    "oak",
    "elm",
    "river",
    "hill",
    "bridge",
    "write",
    "explain",
    "list",
    "sort",
    "python",
    "why",
    "when",
    "stone",
    "paper",
    "green",
]


@cache
def grams(text):
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def reason(text, earlier, limit):
    plain = normalised(text)
    if plain in earlier:
        return "duplicate"
    near = (len(grams(plain) & grams(old)) / len(grams(plain) | grams(old)) >= limit for old in earlier)
    return "near duplicate" if any(near) else None


@pytest.mark.parametrize("limit", [0.5, 0.7, 0.9, 1.0])
def test_a_text_is_a_duplicate_if_one_kept_before_is_as_similar_as_the_limit(limit):
    rng, seen, kept, reasons = random.Random(3), SeenTexts(limit), [], []
    for _ in range(150):
        base = rng.choice(kept).split() if kept and rng.random() < 0.5 else rng.choices(WORDS, k=12)
        changed = [rng.choice(WORDS) if rng.random() < 0.1 else word for word in base]
        expected = reason(" ".join(changed), kept, limit)
        reasons.append(expected)
        assert seen.add(" ".join(changed)) == expected
        if expected is None:
            kept.append(normalised(" ".join(changed)))
    assert {None, "duplicate"} <= set(reasons)
    assert ("near duplicate" in reasons) == (limit < 1.0)


def test_case_spaces_marks_and_widths_do_not_tell_texts_apart_and_texts_without_words_count_as_they_are():
    seen = SeenTexts(1.0)
    texts = ["What  is an ELM?", "what is an elm", "What is an \uff45lm", "樹は何ですか", "樹は何ですか?", "?!", "!!"]
    assert [seen.add(text) for text in texts] == [None, "duplicate", "duplicate", None, "duplicate", None, None]
