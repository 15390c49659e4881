"""Templates that cannot give a trustworthy mask are refused before anything runs; the two ways to a mask agree."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import CHATML, CHATML_MARKED, data_config, dialogue, make_chat, make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from eaglepipe.chat.template import ChatTokenizer, load_chat_tokenizer, load_tokenizer
from eaglepipe.chat.types import Conversation, Message
from eaglepipe.config import DataConfig, SourceConfig
from eaglepipe.errors import DataError, TargetError, TemplateError

CONTENT_AND_END = "{{ message['content'] + '<|im_end|>' }}"


def conversation(messages: list[Message]) -> Conversation:
    return Conversation(sample_id="a", source="s", where="rows.jsonl:7", digest=b"", messages=tuple(messages))


def masked_text(chat: ChatTokenizer, messages: list[Message]) -> list[str]:
    ids, turns = chat.encode(conversation(messages))
    return [chat.tokenizer.decode(ids[turns == turn]) for turn in range(1, turns.max() + 1)]


def refused(template: str, **fields: object) -> str:
    with pytest.raises(TemplateError) as error:
        make_chat(template, **fields)
    return str(error.value)


def test_markers_are_used_when_the_template_has_them() -> None:
    assert make_chat(CHATML_MARKED).template.mask == "generation"
    assert make_chat(CHATML).template.mask == "prefix"
    assert make_chat(CHATML_MARKED, mask="prefix").template.mask == "prefix"


def test_markers_asked_for_and_absent_are_refused() -> None:
    assert "generation" in refused(CHATML, mask="generation")


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_special_ids_hold_the_detected_end_of_turn(template: str) -> None:
    chat = make_chat(template)
    end, pad = chat.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert chat.end_of_turn == chat.eos == end
    assert (chat.bos, chat.unk, chat.pad) == (None, None, pad)
    assert chat.special_ids() == {end, pad}
    assert chat.vocab_size == len(chat.tokenizer)


def test_end_of_turn_may_differ_from_eos() -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.eos_token = "<|endoftext|>"
    chat = load_chat_tokenizer(tokenizer, data_config())
    assert chat.special_ids() == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


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
    thinking = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
    assert "its prompt is rendered differently" in refused(thinking)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}", "outside the mask"),
        ("{% generation %}{% endgeneration %}" + CONTENT_AND_END, "is empty"),
        ("{{ message['content'] }}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}", "does not hold what"),
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


def test_markers_around_the_header_are_refused() -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    assert "belongs to the generation prompt" in refused(template)


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


def test_a_tokenizer_that_drops_white_space_keeps_the_first_word() -> None:
    words = ["Which", "tree", "An", "old", "hello", "fine", "<s>", "</s>", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
    wrapped.chat_template = (
        "{% for message in messages %}{{ '<s> \\n' + message['content'] + ' </s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s> \\n' }}{% endif %}"
    )
    chat = load_chat_tokenizer(wrapped, data_config())
    ids, turns = chat.encode(conversation(dialogue("hello", "fine old")))
    assert wrapped.convert_ids_to_tokens(ids) == ["<s>", "hello", "</s>", "<s>", "fine", "old", "</s>"]
    assert turns.tolist() == [0, 0, 0, 0, 1, 1, 1]


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: a token for each character, and one for the end of a turn."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(eos_token="¶", **kwargs)

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


class Pairs(Characters):
    """The same, but some pairs of characters are one token."""

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return re.findall(r":x|.", text, re.DOTALL)

    def _convert_token_to_id(self, token: str) -> int:
        return 1 if token == ":x" else ord(token)


@pytest.mark.parametrize("kind", [Characters, Pairs])
def test_tokenizer_without_offsets_masks_whole_tokens_or_refuses(kind: type[Characters]) -> None:
    tokenizer = kind(
        chat_template="{% for message in messages %}{{ message['role'] + ':' + message['content'] + '¶' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert not tokenizer.is_fast
    chat = load_chat_tokenizer(tokenizer, data_config())
    ids, turns = chat.encode(conversation(dialogue("a", "b c")))
    assert "".join(map(chr, ids[turns == 1][:-1])) == "b c"
    assert ids[turns == 1][-1] == tokenizer.eos_token_id
    assert turns.tolist() == [0] * 17 + [1] * 4
    if kind is Pairs:
        with pytest.raises(TemplateError, match=r"rows\.jsonl:7: .*border of assistant turn 1"):
            chat.encode(conversation(dialogue("a", "x")))


def test_turns_of_a_prompt_need_not_be_prefixes() -> None:
    said = "(message['content'] if loop.last else message['content'].split('!')[-1]) +"
    stripping = CHATML.replace("message['content'] +", said)
    messages = tuple(dialogue("a", "think!b", "c", "d"))
    chat = make_chat(stripping)
    with pytest.raises(TemplateError):
        chat.encode(conversation(list(messages)))
    _, turns = chat.encode(replace(conversation(list(messages)), num_context=3))
    assert set(turns.tolist()) == {0, 2}


def test_tokenised_sources_need_no_template() -> None:
    data = DataConfig(sources=(SourceConfig(path="x.jsonl", format="tokenized"),))
    chat = load_chat_tokenizer(make_tokenizer(None), data)
    assert chat.special_ids() == set(chat.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


def test_fingerprint_of_a_tokenizer_follows_its_content(tmp_path: Path) -> None:
    chat, other = make_chat(), make_chat()
    chat.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert chat.fingerprint() == other.fingerprint()
    chat.tokenizer.save_pretrained(tmp_path)
    assert load_chat_tokenizer(load_tokenizer(str(tmp_path)), data_config()).fingerprint() == other.fingerprint()
    other.tokenizer.add_tokens(["willow"])
    assert chat.fingerprint() != other.fingerprint()


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


def test_saved_tokenizer_is_loaded_and_a_missing_one_named(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "target")
    assert load_chat_tokenizer(load_tokenizer(str(tmp_path / "target")), data_config()).end_of_turn is not None
    for path in (str(tmp_path / "gone"), "models/gone/target"):
        with pytest.raises(TargetError, match="gone"):
            load_tokenizer(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetError, match="empty"):
        load_tokenizer(str(tmp_path / "empty"))
