"""Messages as they are published say the same as the plain ones, and a message that says more than text is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eaglepipe.chat.formats import Content, parse_row
from eaglepipe.chat.sources import Conversation, iter_conversations
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig
from tests.chat.tiny_chat import CHATML_MARKED, conversation, dialogue, make_chat

PLAIN = dialogue("hello", "fine")
SYSTEM = dialogue("hello", "fine", system="be brief")


def parsed(row: dict[str, Any], layout: Any = "auto") -> Content:
    return parse_row(row, layout, "rows.jsonl:3")


def in_parts(*parts: Any) -> dict[str, Any]:
    return {"messages": [PLAIN[0], {"role": "assistant", "content": list(parts)}]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in PLAIN]},
        in_parts({"type": "text", "text": "fi", "image": None}, {"type": "text", "text": "ne"}),
        in_parts("fi", "ne"),
        in_parts({"text": "fine"}),
        in_parts({"type": "output_text", "text": "fine"}),
        {"messages": [PLAIN[0], {"role": "assistant", "content": {"type": ["text", "text"], "text": ["fi", "ne"]}}]},
        {"messages": json.dumps(PLAIN)},
        {"messages": [json.dumps(message) for message in PLAIN]},
        {"messages": {"role": ["user", "assistant"], "content": ["hello", "fine"], "name": None}},
        {"messages": {"from": ["human", "gpt"], "value": ["hello", "fine"]}},
        {"messages": json.dumps({"role": ["user", "assistant"], "content": ["hello", "fine"]})},
        {"messages": np.array(PLAIN, dtype=object)},
        {"messages": {"role": np.array(["user", "assistant"]), "content": np.array(["hello", "fine"], dtype=object)}},
        {"messages": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}]},
        {"messages": [{"role": "Human", "value": "hello"}, {"from": "assistant", "content": "fine"}]},
        {"conversations": json.dumps([{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}])},
        {"conversation": PLAIN, "model": "x", "turn": 1},
        {"dialogue": PLAIN},
        {"chat": json.dumps(PLAIN)},
        {"messages": [{**PLAIN[0], "weight": 0}, {**PLAIN[1], "weight": 1, "train": True}]},
        {"messages": [PLAIN[0], {**PLAIN[1], "tool_calls": [], "function_call": None}]},
        {"messages": PLAIN, "conversation_hash": "7", "score": 0.5},
    ],
)
def test_every_spelling_reads_as_the_plain_conversation(row: dict[str, Any]) -> None:
    content = parsed(row)
    assert content == parsed({"messages": PLAIN})
    assert content.digests() == parsed({"messages": PLAIN}).digests()


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "hello", "output": "fine"},
        {"instruction": "hello", "input": "", "output": "fine", "history": []},
        {"question": "hello", "answer": "fine", "input": None},
        {"query": "hello", "response": "fine"},
        {"input": [PLAIN[0]], "output": "fine"},
        {"prompt": json.dumps(PLAIN[:1]), "completion": json.dumps(PLAIN[1:])},
        {"prompt": PLAIN[0], "completion": PLAIN[1]},
    ],
)
def test_pairs_read_as_prompt_and_completion(row: dict[str, Any]) -> None:
    assert parsed(row).digests() == parsed({"prompt": "hello", "completion": "fine"}).digests()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PLAIN, "system": "be brief"},
        {"messages": SYSTEM, "system": "be brief"},
        {"conversations": PLAIN, "system_prompt": "be brief"},
        {"conversations": SYSTEM, "system": "be brief", "system_prompt": "be brief"},
        {"system_prompt": "be brief", "question": "hello", "response": "fine"},
    ],
)
def test_system_column_is_the_first_message_once(row: dict[str, Any]) -> None:
    assert list(parsed(row).messages or ()) == SYSTEM


def test_text_that_looks_like_json_stays_text() -> None:
    for text in ("[1, 2]", "[x", '[{"a": 1}]', '{"role": "user"}'):
        assert (parsed({"prompt": text, "completion": "fine"}).messages or ())[0]["content"] == text


def test_thought_parts_become_reasoning_content() -> None:
    thinking = {"type": "thinking", "thinking": "hm"}
    nested = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    for part in (thinking, nested, {"type": "reasoning", "text": "hm"}):
        messages = parsed(in_parts(part, {"type": "text", "text": "fine"})).messages or ()
        assert messages[1] == {"role": "assistant", "content": "fine", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (in_parts({"type": "image_url", "image_url": {"url": "x"}}), "part 1 of its content, is of type 'image_url'"),
        (in_parts({"type": "text", "text": "a"}, {"type": "input_audio"}), "part 2 .* of type 'input_audio'"),
        (in_parts({"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}), "a thought after a text"),
        (in_parts({"type": "text"}), "has no text"),
        (in_parts({"image": "x"}), r"without a type, with keys \['image'\]"),
        (in_parts(3), "is a int, not a text"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "b"}]}]}, "only an assistant"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "has a dict for content"),
        ({"messages": '[{"role": '}, "a string that is not JSON"),
        ({"messages": "7"}, "a list of messages, this is a str"),
        ({"messages": {"role": ["user", "assistant"], "content": ["a"]}}, "columns of different lengths"),
        ({"messages": [{"role": "user", "text": "a"}]}, r"message 1 \(user\) has no content"),
        ({"messages": [{"role": "user", "from": "gpt", "content": "a"}]}, "has the role 'user' and is from 'gpt'"),
        ({"messages": [{"role": "user", "value": "b", "content": "a"}]}, "a content and a value that differ"),
        ({"messages": [["user", "a"]]}, "message 1 is a list"),
        ({"dialog": ["a", "b"]}, "message 1 is a str"),
        ({"dialog": PLAIN, "chat": PLAIN}, r"keys \['chat', 'dialog'\]"),
        ({"messages": SYSTEM, "system": "be long"}, "`system` and the system message differ"),
        ({"messages": PLAIN, "system": True}, "`system` are not one text"),
        ({"messages": PLAIN, "system": "a", "system_prompt": "b"}, "`system` and `system_prompt` are not one text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences"),
        ({"chosen": PLAIN, "rejected": PLAIN}, "preferences"),
        ({"instruction": "a", "input": "b", "output": "c"}, "how `input` joins `instruction` is not known"),
        ({"question": "a", "context": "b", "answer": "c"}, "how `context` joins `question`"),
        ({"instruction": "a", "output": "c", "response": "d"}, "several pairs, instruction/output, instruction/resp"),
        ({"prompt": "a", "completion": "b", "label": False}, "an answer not to learn"),
        ({"messages": [{"role": "assistant", "channel": "analysis", "content": "a"}]}, "of channel 'analysis'"),
        ({"question": "a", "answer": None}, r"keys \['question'\] and null \['answer'\], expected"),
        ({"problem": "a", "solution": "b"}, r"keys \['problem', 'solution'\]"),
    ],
)
def test_other_spellings_are_refused_by_name(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:3: .*" + said):
        parsed(row)


LEFT_OUT = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}, {"masked": True}]
TWO_TURNS = dialogue("a", "b", "c", "d")


def marked(turn: int, mark: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**message, **(mark if index == turn else {})} for index, message in enumerate(TWO_TURNS)]


@pytest.mark.parametrize("mark", LEFT_OUT)
def test_message_left_out_of_training_stays_in_the_text(mark: dict[str, Any]) -> None:
    plain, content = parsed({"messages": TWO_TURNS}), parsed({"messages": marked(1, mark)})
    assert content.messages == plain.messages
    assert content.context == {1}
    assert content.digests() != plain.digests()
    assert parsed({"messages": marked(1, mark), "system": "be brief"}).context == {2}
    assert parsed({"prompt": "a", "completion": [{**TWO_TURNS[1], **mark}, *TWO_TURNS[2:]]}).context == {0, 1}


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"weight": -1}, {"weight": "0"}, {"train": "no"}, {"mask": 1}])
def test_mark_that_is_not_yes_or_no_is_refused(mark: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(mark))):
        parsed({"messages": marked(3, mark)})


@pytest.mark.parametrize("template", [CHATML_MARKED, None])
def test_tokens_of_a_message_left_out_are_not_supervised(template: str | None) -> None:
    chat = make_chat() if template is None else make_chat(template)
    plain_ids, plain = chat.encode(conversation(TWO_TURNS))
    for turn, kept in ((1, 2), (3, 1)):
        content = parsed({"messages": marked(turn, {"weight": 0})})
        row = Conversation(sample_id="a", source="s", where="x", digest=b"", **vars(content))
        ids, turns = chat.encode(row)
        assert ids.tolist() == plain_ids.tolist()
        assert turns.tolist() == np.where(plain == kept, plain, 0).tolist()


def test_row_without_a_turn_to_train_on_has_none() -> None:
    content = parsed({"messages": [PLAIN[0], {**PLAIN[1], "weight": 0}]})
    assert not Conversation(sample_id="a", source="s", where="x", digest=b"", **vars(content)).has_assistant_turn


def test_parquet_structs_read_as_the_rows_that_were_written(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Oslo"}}}
    other = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "of": {"b": [{"c": 2}, {"d": 3}]}}}}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    rows = [
        {"messages": [PLAIN[0], {"role": "assistant", "content": "", "tool_calls": [tool_call]}], "tools": [tool]}
        for tool_call, tool in (
            (call, {"type": "function", "function": {"name": "rain", "parameters": schema}}),
            (other, {"type": "function", "function": {"name": "sum", "parameters": {"properties": {"a": {"x": 1}}}}}),
        )
    ]
    rows.append({"messages": PLAIN})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stored, plain = (
        list(iter_conversations([SourceConfig(path=str(tmp_path / f"rows.{suffix}"))]))
        for suffix in ("parquet", "jsonl")
    )
    assert [(row.messages, row.tools) for row in stored] == [(row.messages, row.tools) for row in plain]
    assert [row.digest for row in stored] == [row.digest for row in plain]
