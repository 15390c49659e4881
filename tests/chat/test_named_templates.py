"""Which of a tokenizer's templates renders a conversation, where templates are found, and the day they print."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.errors import DataError, TemplateError
from tests.chat.tiny_chat import (
    CHATML,
    TOOLS,
    conversation,
    data_config,
    dialogue,
    make_chat,
    make_tokenizer,
)

WITH_TOOLS = "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}" + CHATML


def named(**templates: str) -> PreTrainedTokenizerFast:
    return make_tokenizer(templates)


def test_template_for_tools_renders_the_conversations_that_have_tools() -> None:
    tokenizer = named(default=CHATML, tool_use=WITH_TOOLS)
    chat = load_chat_tokenizer(tokenizer, data_config())
    for tools in (None, TOOLS):
        expected = tokenizer.apply_chat_template(dialogue("a", "b"), tools=tools, tokenize=False)
        assert chat.template.render(dialogue("a", "b"), tools) == expected
        assert chat.template.spans(dialogue("a", "b"), tools).text == expected
    assert chat.template.sources() == [CHATML, WITH_TOOLS]
    assert chat.files()["additional_chat_templates/tool_use.jinja"].decode() == WITH_TOOLS


def test_named_template_of_the_recipe_renders_everything() -> None:
    chat = load_chat_tokenizer(named(default=CHATML, rag="R" + CHATML), data_config(chat_template="rag"))
    assert chat.template.sources() == "R" + CHATML


def test_templates_without_a_default_and_unknown_names_list_those_that_are() -> None:
    with pytest.raises(TemplateError, match="rag, tool_use"):
        load_chat_tokenizer(named(tool_use=CHATML, rag=CHATML), data_config())
    with pytest.raises(DataError, match="default, rag"):
        load_chat_tokenizer(named(default=CHATML, rag=CHATML), data_config(chat_template="other"))


def test_fault_of_the_template_for_tools_matters_to_rows_with_tools_alone() -> None:
    broken = WITH_TOOLS.replace("+ '<|im_end|>' ", "")
    chat = load_chat_tokenizer(named(default=CHATML, tool_use=broken), data_config())
    row = conversation(dialogue("a", "b"))
    assert (chat.encode(row)[1] > 0).any()
    with pytest.raises(TemplateError, match="no special token"):
        chat.encode(replace(row, tools=tuple(TOOLS)))


@pytest.mark.parametrize(
    "head",
    [
        "{{ strftime_now('%Y-%m-%d') }}",
        "{% set day = '%Y-%m-%d' %}{{ strftime_now(day) }}",
        "{% macro today(f) %}{{ strftime_now(f) }}{% endmacro %}{{ today('%Y-%m-%d') }}",
        "{% if strftime_now is defined %}{{ strftime_now('%Y' ~ '-%m-%d') }}{% endif %}",
        "{% set now = strftime_now %}{{ now('%Y-%m-%d') }}",
        "{% set day = '%F' %}{{ strftime_now(format=day) }}",
    ],
)
def test_date_of_the_day_is_a_fixed_one_however_it_is_asked_for(head: str) -> None:
    assert make_chat(head + CHATML).template.render(dialogue("a")).startswith("2025-01-01<|im_start|>")


def test_template_of_a_processor_is_read(tmp_path: Path) -> None:
    make_tokenizer(None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert load_chat_tokenizer(load_tokenizer(tmp_path), data_config()).template.source == CHATML
