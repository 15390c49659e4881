"""Every layout of a row becomes the same conversation, and a row of the wrong shape is named with what is wrong."""

from typing import Any

import numpy as np
import pytest

from eaglepipe.chat.formats import Content, parse_row
from eaglepipe.errors import DataError
from tests.chat.tiny_chat import dialogue

CHAT = tuple(dialogue("hello", "fine", system="be brief"))


def parsed(row: dict[str, Any], layout: Any = "auto") -> Content:
    return parse_row(row, layout, "rows.jsonl:3")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": list(CHAT)},
        {"messages": [{**message, "name": None} for message in CHAT], "prompt": None},
        {
            "conversations": [
                {"from": "system", "value": "be brief"},
                {"from": "human", "value": "hello"},
                {"from": "gpt", "value": "fine"},
            ]
        },
        {"conversations": list(CHAT)},
        {"conversations": list(CHAT[1:]), "system": "be brief"},
        {"prompt": list(CHAT[:2]), "completion": list(CHAT[2:])},
        {"prompt": "hello", "completion": "fine", "system": "be brief"},
    ],
)
def test_every_layout_gives_the_same_messages(row: dict[str, Any]) -> None:
    assert parsed(row).messages == CHAT


def test_prompt_is_context() -> None:
    assert parsed({"prompt": dialogue("a", "b", "c"), "completion": "d"}).context == {0, 1, 2}
    assert parsed({"messages": list(CHAT)}).context == frozenset()


def test_tools_may_be_a_list_or_json() -> None:
    tool = {"type": "function"}
    for tools in ([tool], '[{"type": "function"}]'):
        assert parsed({"messages": list(CHAT), "tools": tools}).tools == (tool,)
    for tools in (None, [], "", "[]"):
        assert parsed({"messages": list(CHAT), "tools": tools}).tools is None


def test_tool_call_may_have_null_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now"}}]}
    (message,) = parsed({"messages": [call]}).messages or ()
    assert "content" not in message


@pytest.mark.parametrize(
    "supervision",
    [
        {"loss_mask": [0, 1, 1, 0, 1]},
        {"loss_mask": [False, True, True, False, True]},
        {"labels": [-100, 6, 7, -100, 9]},
    ],
)
def test_tokenised_rows_number_the_runs_of_their_mask(supervision: dict[str, Any]) -> None:
    content = parsed({"input_ids": [5, 6, 7, 8, 9], **supervision})
    assert content.input_ids is not None
    assert content.turns is not None
    assert content.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert content.turns.tolist() == [0, 1, 1, 0, 2]
    assert content.input_ids.dtype == content.turns.dtype == np.int32


def test_mask_from_token_zero_is_a_turn() -> None:
    turns = parsed({"input_ids": [5, 6, 7], "loss_mask": [1, 1, 0]}).turns
    assert turns is not None
    assert turns.tolist() == [1, 1, 0]


def test_padding_of_tokenised_rows_is_left_out() -> None:
    content = parsed({"input_ids": [5, 6, 0, 0], "loss_mask": [1, 1, 0, 0], "attention_mask": [1, 1, 0, 0]})
    assert content.input_ids is not None
    assert content.input_ids.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "score": 1}, r"keys \['score', 'text'\]"),
        ({"messages": "hello"}, "a list of messages, this is a str"),
        ({"messages": ["hello"]}, "message 1 is a str"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "message 1 has the unknown role 'wizard'"),
        ({"messages": [{"content": "a"}]}, "unknown role None"),
        ({"messages": [{"role": "user", "content": None}]}, r"message 1 \(user\) has no content"),
        ({"messages": [{"role": "assistant"}]}, r"message 1 \(assistant\) has no content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "part 1 of its content, is a int, not a text"),
        ({"conversations": [{"from": "wizard", "value": "a"}]}, "from the unknown 'wizard'"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, r"from the unknown \['human'\]"),
        ({"messages": [], "tools": "{"}, "`tools` is a string that is not JSON"),
        ({"messages": [], "tools": [1]}, "`tools` is not a list of objects"),
        ({"prompt": "a", "completion": 3}, "this is a int"),
        ({"input_ids": [1, 2]}, "`loss_mask` or `labels`"),
        ({"input_ids": [1, 2], "loss_mask": [1]}, "1 entries for 2 input_ids"),
        ({"input_ids": [1, 2], "loss_mask": [1, 2]}, "other than 0 and 1"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "labels are unshifted"),
        ({"input_ids": [1, -2], "loss_mask": [1, 1]}, "from -2 to 1"),
        ({"input_ids": [1, 2**40], "loss_mask": [1, 1]}, "ids are 0 or more"),
        ({"input_ids": [1.5], "loss_mask": [1]}, "not a flat list of integers"),
        ({"input_ids": [[1, 2]], "loss_mask": [1]}, "not a flat list of integers"),
        ({"input_ids": [[1], [1, 2]], "loss_mask": [1]}, "not a flat list of integers"),
        ({"input_ids": "12", "loss_mask": [1]}, "not a flat list of integers"),
        ({"input_ids": 5, "loss_mask": [1]}, "not a flat list of integers"),
    ],
)
def test_wrong_shape_is_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:3: .*" + said):
        parsed(row)


def test_layout_that_was_asked_for_is_not_guessed() -> None:
    row = {"messages": list(CHAT), "conversations": [{"from": "human", "value": "other"}]}
    assert parsed(row, "sharegpt").messages == ({"role": "user", "content": "other"},)
    with pytest.raises(DataError, match="no `prompt`"):
        parsed(row, "prompt_completion")


def test_digests_of_the_first_layouts_stay() -> None:
    """Caches name these, so a row that reads as before keeps its digest."""
    assert parsed({"messages": list(CHAT)}).digests()[1] == "ab60b636f2b72e84"
    assert parsed({"prompt": dialogue("a", "b", "c"), "completion": "d"}).digests()[1] == "aa4b1397b42e52b9"
