"""Templates that cannot give a trustworthy mask are refused before anything runs; the two ways to a mask agree."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import DataError, TemplateError
from tests.chat.tiny_chat import (
    CHATML,
    CHATML_MARKED,
    CONTENT_AND_END,
    TOOLS,
    conversation,
    data_config,
    dialogue,
    make_chat,
    make_tokenizer,
    masked_text,
    refused,
)


def test_markers_are_used_when_the_template_has_them() -> None:
    assert make_chat(CHATML_MARKED).template.mask == "generation"
    assert make_chat(CHATML).template.mask == "prefix"
    assert make_chat(CHATML_MARKED, mask="prefix").template.mask == "prefix"


def test_markers_asked_for_and_absent_are_refused() -> None:
    assert "generation" in refused(CHATML, mask="generation")


def test_template_that_strips_earlier_thoughts_is_refused_at_the_row_and_turn() -> None:
    stripping = CHATML.replace(
        "message['content'] +", "(message['content'] if loop.last else message['content'].split('</think>')[-1]) +"
    )
    chat = make_chat(stripping)
    assert masked_text(chat, dialogue("a", "b", "c", "<think>x</think>d"))[1] == "<think>x</think>d<|im_end|>"
    with pytest.raises(TemplateError, match=r"rows\.jsonl:7: .*not prefix-preserving: at assistant turn 1 of 2"):
        chat.encode(conversation(dialogue("a", "<think>x</think>b", "c", "d")))


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_template_that_closes_the_last_turn_differently_is_refused(template: str) -> None:
    padded = "(message['content'] if loop.last or message['role'] != 'assistant' else message['content'] + ' ') +"
    uneven = template.replace("message['content'] +", padded)
    message = refused(uneven)
    assert "not prefix-preserving" in message
    assert "turn 1 of 2" in message
    assert "supervise: last" in message


def test_generation_prompt_that_the_rendering_lacks_is_refused() -> None:
    friendly = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\nWell: ' }}{% endif %}")
    assert "its prompt is rendered differently" in refused(friendly)


def test_no_hint_names_a_setting_that_the_recipe_has_or_that_cannot_help() -> None:
    counting = CHATML.replace("message['content'] +", "(message['content'] ~ messages|length) +")
    first_turn = CHATML.replace("message['content'] +", "(message['content'] ~ (loop.last or messages|length < 3)) +")
    assert "supervise: last" in refused(first_turn)
    assert "supervise: last" not in refused(counting)
    assert "supervise: last" not in refused(counting, supervise="last")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}", "outside the mask"),
        ("{% generation %}{% endgeneration %}" + CONTENT_AND_END, "is empty"),
        ("{{ message['content'] }}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}", "does not hold the"),
        (
            "{% set body %}{% generation %}" + CONTENT_AND_END + "{% endgeneration %}{% endset %}{{ 'so: ' + body }}",
            "generation block",
        ),
    ],
)
def test_misplaced_markers_are_refused_with_the_reason(block: str, said: str) -> None:
    marked = "{% generation %}" + CONTENT_AND_END + "{% endgeneration %}"
    assert marked in CHATML_MARKED
    assert said in refused(CHATML_MARKED.replace(marked, block))


@pytest.mark.parametrize("opening", ["", "<think>\\n"], ids=["header", "header and thought"])
def test_block_that_begins_inside_the_generation_prompt_is_cut_there(opening: str) -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\\nOPEN' + message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\nOPEN' }}{% endif %}"
    ).replace("OPEN", opening)
    assert masked_text(make_chat(template), dialogue("a", "b", "c", "d")) == ["b<|im_end|>", "d<|im_end|>"]


def test_turn_without_an_end_token_is_refused() -> None:
    plain = CHATML.replace("+ '<|im_end|>' ", "")
    assert "no special token" in refused(plain)


def test_prompt_that_merges_with_the_answer_is_refused() -> None:
    spaced = CHATML.replace("['role'] + '\\n' }}", "['role'] + ': ' }}").replace(
        "assistant\\n' }}{% endif", "assistant: ' }}{% endif"
    )
    assert "merges the end of the generation prompt" in refused(spaced)


def test_merged_token_at_the_border_of_a_row_is_not_the_assistants() -> None:
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' + (' ' if messages|length > 4 else '') }}{% endif %}"
    )
    for trim_offsets in (True, False):
        chat = make_chat(template, trim_offsets=trim_offsets)
        messages = dialogue("a", "b", "c", "d", "e", " willow stands")
        ids, turns = chat.encode(conversation(messages))
        assert chat.tokenizer.decode(ids[turns == 3]) == " stands<|im_end|>"
        assert ids.tolist() == chat.token_ids(chat.template.render(messages)).tolist()


def test_template_of_a_file_and_its_variables_win(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML.replace("'system'", "'system'").replace("{% for", "{{ greeting }}{% for", 1))
    chat = load_chat_tokenizer(
        make_tokenizer(None), data_config(chat_template=str(path), chat_template_kwargs={"greeting": "hi "})
    )
    assert chat.template.render(dialogue("a")).startswith("hi <|im_start|>user")


def test_missing_or_broken_templates_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jinja"):
        load_chat_tokenizer(make_tokenizer(), data_config(chat_template=str(tmp_path / "nowhere.jinja")))
    with pytest.raises(TemplateError, match="no chat template"):
        load_chat_tokenizer(make_tokenizer(None), data_config())
    assert "line 1" in refused("{% for message in messages %}")


def test_system_message_may_be_refused_by_the_template() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    assert make_chat(strict).end_of_turn is not None


def test_same_rows_give_the_same_text_on_any_day() -> None:
    chat = make_chat("{{ strftime_now('%Y-%m-%d') }}" + CHATML)
    assert chat.template.render(dialogue("a")).startswith("2025-01-01<|im_start|>")


def test_tool_calls_and_tools_reach_the_template() -> None:
    template = (
        "{{ tools | tojson if tools else '' }}{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{{ (message['content'] or '') }}{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    chat = make_chat(template)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    messages = [
        *dialogue("time?"),
        call,
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
    ]
    tools = ({"type": "function", "function": {"name": "now"}},)
    rendered = chat.template.spans(messages, tools)
    assert rendered.text.startswith('[{"type": "function"')
    assert [rendered.text[span.start : span.end] for span in rendered.spans] == [
        '[{"function": {"name": "now", "arguments": {}}}]<|im_end|>\n',
        "Noon.<|im_end|>\n",
    ]


def test_several_marks_in_one_message_are_one_turn() -> None:
    halves = (
        "{% if message['thinking'] %}{% generation %}{{ message['thinking'] }}{% endgeneration %}{% endif %}"
        "{% generation %}" + CONTENT_AND_END + "{% endgeneration %}"
    )
    template = CHATML_MARKED.replace("{% generation %}" + CONTENT_AND_END + "{% endgeneration %}", halves)
    messages = dialogue("a", "b", "c", "d")
    messages[1]["thinking"] = "hm "
    assert masked_text(make_chat(template), messages) == ["hm b<|im_end|>", "d<|im_end|>"]


def test_turns_of_a_prompt_need_not_be_prefixes() -> None:
    said = "(message['content'] if loop.last else message['content'].split('!')[-1]) +"
    stripping = CHATML.replace("message['content'] +", said)
    messages = tuple(dialogue("a", "think!b", "c", "d"))
    chat = make_chat(stripping)
    with pytest.raises(TemplateError):
        chat.encode(conversation(list(messages)))
    _, turns = chat.encode(replace(conversation(list(messages)), context=frozenset(range(3))))
    assert set(turns.tolist()) == {0, 2}


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12)


@cache
def marked_and_plain() -> tuple[ChatTokenizer, ChatTokenizer]:
    return make_chat(CHATML_MARKED), make_chat(CHATML)


@settings(max_examples=60, deadline=2000)
@given(st.lists(TEXTS, min_size=2, max_size=6), st.none() | TEXTS)
def test_markers_and_prefixes_give_the_same_mask(texts: list[str], system: str | None) -> None:
    messages = conversation(dialogue(*texts, system=system))
    (ids, turns), (other_ids, other_turns) = (chat.encode(messages) for chat in marked_and_plain())
    assert np.array_equal(ids, other_ids)
    assert np.array_equal(turns, other_turns)
    assert turns.max() == len(texts) // 2


DEMANDING = {
    "system": "{% if messages[0].role != 'system' %}{{ raise_exception('a system message, please') }}{% endif %}",
    "tools": "{% if not tools %}{{ raise_exception('tools, please') }}{% endif %}",
    "short": "{% if messages | length > 3 %}{{ raise_exception('one question, please') }}{% endif %}",
}


@pytest.mark.parametrize("demand", DEMANDING)
def test_template_that_demands_more_than_a_probe_holds_is_left_to_each_row(demand: str) -> None:
    chat = make_chat(DEMANDING[demand] + CHATML)
    row = replace(conversation(dialogue("a", "b", system="s" if demand == "system" else None)), tools=tuple(TOOLS))
    ids, turns = chat.encode(row)
    assert chat.tokenizer.decode(ids[turns == 1]) == "b<|im_end|>"
    assert chat.end_of_turn == chat.tokenizer.eos_token_id
    bad = {"system": dialogue("a", "b"), "tools": dialogue("a", "b"), "short": dialogue(*"abcdef")}[demand]
    with pytest.raises(TemplateError, match="please"):
        chat.encode(conversation(bad))


def test_template_that_is_not_a_function_of_its_row_is_refused() -> None:
    noisy = "{{ range(90000) | random }}"
    for template in (noisy + CHATML, noisy + CHATML_MARKED):
        assert "in several ways" in refused(template)
