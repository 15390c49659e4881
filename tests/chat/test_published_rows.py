"""Files of rows as they are published, to the text and the supervised tokens that the preview shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.preview import preview_samples
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.tokens import iter_token_samples
from tests.chat.tiny_chat import data_config, dialogue, make_chat, make_tokenizer

Write = Callable[..., Path]
CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ':' }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = dialogue("hello", "fine")
FUNCTION = {"name": "rain", "arguments": {"city": "Oslo"}}
AS_TEXT = {"name": "rain", "arguments": '{"city": "Oslo"}'}


def turns_shown(path: Path) -> list[list[str]]:
    """Return the bracketed turns of each sample."""
    conversations = iter_conversations(data_config(path).sources)
    samples = list(iter_token_samples(conversations, make_chat(CALLS), data_config(path), DropLog()))
    texts = [preview_samples([sample], make_tokenizer(), colour=False, max_tokens=1000) for sample in samples]
    return [[part.split("⟧")[0] for part in text.split("⟦")[1:]] for text in texts]


@pytest.mark.parametrize(
    "messages",
    [
        [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in PLAIN],
        json.dumps(PLAIN),
        {"role": ["user", "assistant"], "content": ["hello", "fine"]},
        [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}],
    ],
)
def test_rows_of_every_layout_are_the_sample_of_the_plain_row(write_jsonl: Write, messages: Any) -> None:
    plain, path = write_jsonl({"messages": PLAIN}, name="a/rows.jsonl"), write_jsonl({"messages": messages})
    assert turns_shown(path) == turns_shown(plain) == [["fine<|im_end|>"]]
    (row,), (expected,) = (list(iter_conversations(data_config(file).sources)) for file in (path, plain))
    assert row.sample_id == expected.sample_id


def test_weight_zero_is_shown_and_not_supervised(write_jsonl: Write) -> None:
    messages: list[dict[str, Any]] = [*dialogue("a", "b", "c", "d")]
    messages[1] |= {"weight": 0}
    assert turns_shown(write_jsonl({"messages": messages})) == [["d<|im_end|>"]]


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": AS_TEXT}]},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([{"function": FUNCTION}])},
        {"role": "assistant", "content": None, "function_call": AS_TEXT},
        {"from": "function_call", "value": json.dumps(FUNCTION)},
    ],
)
def test_calls_are_supervised_as_the_template_writes_objects(write_jsonl: Write, call: dict[str, Any]) -> None:
    result, answer = {"role": "tool", "content": "yes"}, {"role": "assistant", "content": "fine"}
    path = write_jsonl({"messages": [PLAIN[0], call, result, answer]})
    assert turns_shown(path) == [['rain:{"city": "Oslo"}<|im_end|>', "fine<|im_end|>"]]
