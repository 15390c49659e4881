"""Conversations become exactly the tokens and turns that a hand-written oracle says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.sources import Conversation, iter_conversations
from eaglepipe.chat.tokens import iter_token_samples, supervised_tokens
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig
from tests.chat.stored_rows import pieces, samples_of
from tests.chat.tiny_chat import CHATML, CHATML_MARKED, data_config, dialogue, make_chat

Write = Callable[..., Path]


TWO_TURNS = [  # (text, turn), written by hand; a text is one or more whole tokens
    ("<|im_start|>", 0), ("user", 0), ("\n", 0), ("hello", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant", 0), ("\n", 0), ("I am fine.", 1), ("<|im_end|>", 1), ("\n", 0),
    ("<|im_start|>", 0), ("user", 0), ("\n", 0), ("how are you", 0), ("<|im_end|>", 0), ("\n", 0),
    ("<|im_start|>", 0), ("assistant", 0), ("\n", 0), ("é 12", 2), ("<|im_end|>", 2), ("\n", 0),
]  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_two_turns_token_by_token(write_jsonl: Write, template: str) -> None:
    path = write_jsonl({"messages": dialogue("hello", "I am fine.", "how are you", "é 12")})
    (sample,), _ = samples_of(path, template)
    expected = [(token, turn) for text, turn in TWO_TURNS for token in pieces(text)]
    assert list(zip(sample.input_ids.tolist(), sample.turns.tolist(), strict=True)) == expected
    in_turn = [turn for _, turn in expected]
    oracle = [a > 0 and a == b for a, b in zip(in_turn, [*in_turn[1:], 0], strict=True)]
    assert supervised_tokens(sample.turns).tolist() == oracle
    assert sample.input_ids.dtype == sample.turns.dtype == np.int32


def test_the_line_feed_after_the_end_of_turn_is_nobodys_even_inside_the_markers(write_jsonl: Write) -> None:
    wide = CHATML_MARKED.replace(
        "'<|im_end|>' }}{% endgeneration %}{{ '\\n' }}", "'<|im_end|>\\n' }}{% endgeneration %}"
    )
    assert wide != CHATML_MARKED
    path = write_jsonl({"messages": dialogue("hello", "I am fine.")})
    (sample,), (tight,) = samples_of(path, wide)[0], samples_of(path, CHATML_MARKED)[0]
    assert sample.turns.tolist() == tight.turns.tolist()


def test_adjacent_assistant_messages_are_two_turns(write_jsonl: Write) -> None:
    messages = [*dialogue("hello", "I am"), {"role": "assistant", "content": "fine."}]
    for template in (CHATML, CHATML_MARKED):
        (sample,), _ = samples_of(write_jsonl({"messages": messages}), template)
        assert set(sample.turns.tolist()) == {0, 1, 2}


def test_truncation_inside_a_turn_keeps_its_first_tokens(write_jsonl: Write) -> None:
    path = write_jsonl({"messages": dialogue("hello", "I am fine today, how are you")})
    (whole,), _ = samples_of(path)
    start = int(np.flatnonzero(whole.turns)[0])
    (cut,), drops = samples_of(path, max_length=start + 3)
    assert cut.input_ids.tolist() == whole.input_ids[: start + 3].tolist()
    assert cut.turns.tolist() == [0] * start + [1, 1, 1]
    assert supervised_tokens(cut.turns).tolist() == [False] * start + [True, True, False]
    assert not drops


def test_one_token_of_a_turn_supervises_nothing_and_is_dropped(write_jsonl: Write) -> None:
    path = write_jsonl({"messages": dialogue("hello", "I am fine today")})
    (whole,), _ = samples_of(path)
    samples, drops = samples_of(path, max_length=int(np.flatnonzero(whole.turns)[0]) + 1)
    assert not samples
    assert drops == {"empty_mask": 1}


@pytest.mark.parametrize(("max_length", "kept"), [(10, 0), (11, 1), (12, 1)])
def test_length_limit_is_inclusive(write_jsonl: Write, max_length: int, kept: int) -> None:
    path = write_jsonl({"input_ids": list(range(11)), "loss_mask": [0] * 5 + [1] * 6})
    samples, drops = samples_of(path, None, max_length=max_length, on_long="drop")
    assert len(samples) == kept
    assert drops == ({} if kept else {"too_long": 1})


def test_last_turn_alone_is_supervised_and_keeps_its_number(write_jsonl: Write) -> None:
    path = write_jsonl({"messages": dialogue("hello", "I am fine.", "how are you", "fine")})
    for template in (CHATML, CHATML_MARKED):
        (every,), _ = samples_of(path, template)
        (last,), _ = samples_of(path, template, supervise="last")
        assert last.turns.tolist() == [turn if turn == 2 else 0 for turn in every.turns.tolist()]


def test_last_turn_cut_away_is_an_empty_mask(write_jsonl: Write) -> None:
    path = write_jsonl({"messages": dialogue("hello", "I am fine.", "how are you", "fine")})
    samples, drops = samples_of(path, supervise="last", max_length=16)
    assert (samples, drops) == ([], {"empty_mask": 1})


def test_last_turn_is_usable_where_earlier_ones_are_rewritten(write_jsonl: Write) -> None:
    kept = "(message['content'] if loop.last or message['role'] == 'user' else 'gone') +"
    rewriting = CHATML.replace("message['content'] +", kept)
    path = write_jsonl({"messages": dialogue("hello", "I am fine.", "how are you", "fine")})
    (sample,), _ = samples_of(path, rewriting, supervise="last")
    assert sample.input_ids[sample.turns > 0].tolist() == pieces("fine", "<|im_end|>")


def test_every_drop_is_counted_by_its_reason(write_jsonl: Write) -> None:
    path = write_jsonl(
        {"messages": []},
        {"messages": dialogue("hello")},
        {"messages": [*dialogue("hello"), {"role": "assistant", "content": "fine", "weight": 0}]},
        {"input_ids": [], "loss_mask": []},
        {"input_ids": [5], "loss_mask": [1]},
        {"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]},
        {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 0]},
        {"input_ids": [5, 6, 7], "loss_mask": [1, 1, 0]},
    )
    samples, drops = samples_of(path)
    assert [sample.input_ids.tolist() for sample in samples] == [[5, 6, 7]]
    assert drops == {"no_assistant_turn": 2, "not_trained_on": 1, "too_short": 2, "empty_mask": 2}


def test_a_tokenised_turn_may_start_at_token_zero(write_jsonl: Write) -> None:
    (sample,), _ = samples_of(write_jsonl({"input_ids": [5, 6, 7], "loss_mask": [1, 1, 0]}), None)
    assert sample.turns.tolist() == [1, 1, 0]


def test_prompt_messages_are_context_and_never_supervised(write_jsonl: Write) -> None:
    prompt, completion = dialogue("hello", "I am fine.", "how are you"), dialogue("", "fine")[1:]
    path = write_jsonl({"prompt": prompt, "completion": completion}, {"prompt": prompt[:1], "completion": "fine"})
    for template in (CHATML, CHATML_MARKED):
        (chat, plain), _ = samples_of(path, template)
        assert set(chat.turns.tolist()) == {0, 2}
        assert set(plain.turns.tolist()) == {0, 1}
        assert chat.input_ids[chat.turns == 2].tolist() == pieces("fine", "<|im_end|>")


def test_order_survives_mixed_rows_and_batches(write_jsonl: Write) -> None:
    rows = [
        {"id": n, "input_ids": [n, n], "loss_mask": [1, 1]} if n % 3 else {"id": n, "messages": dialogue("hi", str(n))}
        for n in range(150)
    ]
    samples, _ = samples_of(write_jsonl(*rows))
    assert [sample.sample_id for sample in samples] == [f"rows:{n}" for n in range(150)]
    assert samples[100].input_ids.tolist() == [100, 100]


def test_messages_without_a_tokenizer_are_refused_by_place(write_jsonl: Write) -> None:
    path = write_jsonl({"input_ids": [1, 2], "loss_mask": [1, 1]}, {"messages": dialogue("hello", "fine")})
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        samples_of(path, None)


def exact_row(**fields: Any) -> dict[str, Any]:
    ids = pieces("<|im_start|>", "assistant", "\n", "fine.", "<|im_end|>")
    row = {"messages": dialogue("other", "words"), "input_ids": ids, "loss_mask": [0, 0, 0] + [1] * (len(ids) - 3)}
    return {**row, "tokenizer": make_chat().fingerprint(), **fields}


@pytest.mark.parametrize("layout", ["auto", "messages"])
@pytest.mark.parametrize("template", [CHATML, CHATML.replace("<|im_end|>", "."), CHATML_MARKED])
def test_ids_that_name_their_tokenizer_are_read_as_they_are(write_jsonl: Write, template: str, layout: str) -> None:
    row = exact_row()
    source = SourceConfig(path=str(write_jsonl(row)), format=layout)
    data = data_config().model_copy(update={"sources": (source,)})
    (sample,) = iter_token_samples(iter_conversations(data.sources), make_chat(template), data, DropLog())
    assert sample.input_ids.tolist() == row["input_ids"]
    assert sample.turns.tolist() == row["loss_mask"]


@pytest.mark.parametrize("other", ["0" * 32, "another/model"])
def test_ids_of_another_tokenizer_are_refused_with_the_source_and_the_way_out(write_jsonl: Write, other: str) -> None:
    path = write_jsonl(exact_row(), exact_row(tokenizer=other))
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: source 'rows' .*{other}.*data regenerate"):
        samples_of(path)


def test_ids_that_name_a_tokenizer_need_one_to_compare(write_jsonl: Write) -> None:
    with pytest.raises(DataError, match="the target's folder lacks"):
        samples_of(write_jsonl(exact_row()), None)


def test_the_name_of_a_tokenizer_is_no_part_of_the_content(write_jsonl: Write) -> None:
    named, plain = exact_row(messages=None), exact_row(messages=None, tokenizer=None)
    rows = list(iter_conversations(data_config(write_jsonl(named, plain)).sources))
    identities = {(row.sample_id, row.digest) for row in rows if isinstance(row, Conversation)}
    assert len(rows) == 2 and len(identities) == 1
