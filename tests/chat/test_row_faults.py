"""Odd rows: left out with their reason and place, or kept with what a target could have written."""

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FAULTS
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.tokens import iter_token_samples
from eaglepipe.errors import DataError
from tests.chat.stored_rows import pieces, samples_of
from tests.chat.tiny_chat import CHATML, CHATML_MARKED, data_config, dialogue, make_chat

Write = Callable[..., Path]


FIRST_IS_READ = "{% if messages[0]['role'] == 'system' %}{% endif %}" + CHATML  # as Llama 3.1 and Qwen do
NO_ROLE_TWICE = (
    "{% for message in messages if message['role'] != 'system' %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}" + CHATML
)


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, FIRST_IS_READ])
def test_an_opening_assistant_turn_is_text_and_only_later_turns_are_supervised(
    write_jsonl: Write, template: str
) -> None:
    opening = [{"role": "assistant", "content": "hello"}, *dialogue("how are you", "fine")]
    answered = [{"role": "system", "content": "fine"}, *opening]
    path = write_jsonl({"messages": opening}, {"messages": opening[:1]}, {"messages": answered})
    (first, second), drops = samples_of(path, template)
    assert first.input_ids[first.turns > 0].tolist() == pieces("fine", "<|im_end|>")
    assert set(first.turns.tolist()) == {0, 2}
    opened = pieces("<|im_start|>", "assistant", "\n", "hello")
    assert first.input_ids[: len(opened)].tolist() == opened
    assert set(second.turns.tolist()) == {0, 1, 2}
    assert drops == {"no_assistant_turn": 1}


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
@pytest.mark.parametrize("supervise", ["all", "last"])
def test_messages_after_the_last_assistant_turn_change_nothing(
    write_jsonl: Write, template: str, supervise: str
) -> None:
    last_question = "messages[-1]['role'] == 'user'"  # Qwen3 shows thoughts after the last question only
    template = "{% if " + last_question + " and not add_generation_prompt %}changed{% endif %}" + template
    whole = dialogue("hello", "I am fine.", "how are you", "é 12")
    tails: list[list[dict[str, str]]] = [[], dialogue("hello"), [{"role": "tool", "content": "12"}, *dialogue("hi")]]
    path = write_jsonl(*[{"id": n, "messages": [*whole, *tail]} for n, tail in enumerate(tails)])
    samples, drops = samples_of(path, template, supervise=supervise)
    assert len({(*sample.input_ids.tolist(), *sample.turns.tolist()) for sample in samples}) == 1
    assert (len(samples), drops) == (3, {})


@pytest.mark.parametrize(
    "fault",
    [
        "raise_exception('no')",
        "message['n'] | dictsort",
        "message['n'] + 'a'",
        "message['n'].x.y",
        "1 / (message['n'] - 7)",
    ],
)
def test_whatever_a_template_trips_over_is_the_fault_of_its_row(write_jsonl: Write, fault: str) -> None:
    template = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['n'] %}{{ " + fault + " }}{% endif %}",
    )
    assert template != CHATML
    odd = {"messages": [{"role": "user", "content": "hello", "n": 7}, {"role": "assistant", "content": "fine"}]}
    samples, drops = samples_of(write_jsonl({"messages": dialogue("a", "b")}, odd), template)
    assert (len(samples), drops) == (1, {"template_refuses": 1})


ODD_ROWS: list[tuple[bytes | dict[str, Any], str]] = [
    (b"{broken", "not_json"),
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not_json"),
    (b"[1, 2]", "unknown_layout"),
    ({"text": "hello"}, "unknown_layout"),
    ({"messages": "hello"}, "malformed"),
    ({"messages": ["hello"]}, "malformed"),
    ({"messages": [{"role": "wizard", "content": "a"}, *dialogue("a", "b")]}, "unknown_role"),
    ({"messages": [{"content": "a"}, *dialogue("a", "b")]}, "unknown_role"),
    ({"conversations": [{"from": "wizard", "value": "a"}]}, "unknown_role"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}, "no_content"),
    ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}]}, "no_content"),
    (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half_surrogate"),
    ({"messages": [*dialogue("a"), *dialogue("b", "c")]}, "template_refuses"),
    ({"messages": [*dialogue("a", "b"), {"role": "assistant", "content": "c"}]}, "template_refuses"),
    ({"messages": dialogue("hello")}, "no_assistant_turn"),
    ({"messages": []}, "no_assistant_turn"),
    ({"input_ids": [5], "loss_mask": [1]}, "too_short"),
    ({"input_ids": [5, 6, 7], "loss_mask": [1, 1]}, "malformed"),
    ({"input_ids": [5, 10**6], "loss_mask": [1, 1]}, "token_out_of_range"),
]


def test_every_odd_row_is_listed_by_place_and_reason_and_those_beside_it_stay(tmp_path: Path) -> None:
    lines, places = [], []
    for number, (row, reason) in enumerate(ODD_ROWS):
        lines += [json.dumps({"messages": dialogue(f"hello {number}", "fine")}).encode()]
        lines += [row if isinstance(row, bytes) else json.dumps(row).encode()]
        places.append((f"{tmp_path / 'rows.jsonl'}:{len(lines)}", reason))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    drops, stream = DropLog(listing := io.BytesIO()), iter_conversations(data_config(path).sources)
    chat, data = make_chat(NO_ROLE_TWICE), data_config(path)
    samples = list(iter_token_samples(stream, chat, data, drops, vocab_size=1000))
    assert len(samples) == len(ODD_ROWS)
    listed = [json.loads(line) for line in listing.getvalue().splitlines()]
    assert [(line["where"], line["reason"]) for line in listed] == places
    assert all(line["source"] == "rows" and line["detail"] for line in listed)
    assert set(drops.counts) <= set(FAULTS)


@pytest.mark.parametrize(
    ("faulty", "rows", "fraction", "passes"),
    [(1, 20, 0.05, True), (1, 21, 0.05, True), (1, 19, 0.05, False), (29, 100, 0.29, True), (3, 10, 0.3, True),
     (1, 1000, 0.0, False), (0, 5, 0.0, True), (8, 10, 1.0, True)],
)  # fmt: skip
def test_faulty_rows_may_be_as_many_as_the_setting_says(faulty: int, rows: int, fraction: float, passes: bool) -> None:
    drops = DropLog(counts={"no_content": faulty})
    drops.add("too_long", where="a", source="a", detail="b")  # the recipe's own choice, in the whole but no fault
    with nullcontext() if passes else pytest.raises(DataError, match=r"data\.max_drop_fraction(.|\n)*no_content"):
        drops.check(rows - faulty - 1, fraction)


def test_a_corpus_without_a_sample_says_what_became_of_it() -> None:
    drops = DropLog()
    drops.add("too_long", where="a.jsonl:1", source="a", detail="9 tokens")
    with pytest.raises(DataError, match=r"no sample is left.*1 too_long\n(.|\n)*100.00%  a.jsonl:1: 9 tokens"):
        drops.check(0, 1.0)


def test_a_row_the_template_refuses_is_dropped_and_those_beside_it_are_not(write_jsonl: Write) -> None:
    strict = "{% if messages|length > 4 %}{{ raise_exception('too many messages') }}{% endif %}" + CHATML
    good = [{"messages": dialogue("a", "b")}, {"messages": dialogue("c", "d")}]
    alone, _ = samples_of(write_jsonl(*good), strict)
    kept, drops = samples_of(
        write_jsonl(good[0], {"messages": dialogue("a", "b", "c", "d", "e", "f")}, good[1]), strict
    )
    assert [sample.input_ids.tolist() for sample in kept] == [sample.input_ids.tolist() for sample in alone]
    assert drops == {"template_refuses": 1}
