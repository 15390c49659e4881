"""Tool calls and tools read alike in every spelling; a call that cannot be read is refused."""

import json
from typing import Any

import pytest

from eaglepipe.chat.formats import parse_row
from eaglepipe.errors import DataError

ARGUMENTS = {"city": "Oslo", "days": [1, {"unit": None}]}
FUNCTION = {"name": "rain", "arguments": ARGUMENTS}
CALL = {"type": "function", "function": FUNCTION}
AS_TEXT = {"name": "rain", "arguments": json.dumps(ARGUMENTS)}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "default": None}}}
TOOL = {"type": "function", "function": {"name": "rain", "description": "x", "parameters": SCHEMA}}


def message(row: dict[str, Any]) -> dict[str, Any]:
    (first,) = parse_row(row, "auto", "rows.jsonl:3").messages or ()
    return first


def calling(calls: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": calls, **fields}]}


@pytest.mark.parametrize(
    "row",
    [
        calling([CALL]),
        calling([{"type": "function", "function": AS_TEXT, "id": None}]),
        calling(json.dumps([CALL])),
        calling(json.dumps([{"type": "function", "function": AS_TEXT}])),
        calling(json.dumps(CALL)),
        calling(CALL),
        calling([json.dumps(CALL)]),
        calling([{"type": "function", "function": json.dumps(FUNCTION)}]),
        calling([FUNCTION]),
        calling([{"name": "rain", "parameters": ARGUMENTS}]),
        calling([{"name": "rain", "args": ARGUMENTS, "type": "tool_call"}]),
        calling({"type": ["function"], "function": [AS_TEXT]}),
        calling(None, function_call=AS_TEXT),
        calling([], function_call=json.dumps(FUNCTION)),
        {"conversations": [{"from": "function_call", "value": json.dumps(FUNCTION)}]},
        {"conversations": [{"from": "tool_call", "value": json.dumps([AS_TEXT])}]},
        {"messages": [{"role": "function_call", "content": json.dumps(CALL)}]},
    ],
)
def test_every_spelling_of_a_call_reads_the_same(row: dict[str, Any]) -> None:
    assert message(row) == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("arguments", [{}, "{}", "", " ", None])
def test_call_without_arguments_has_none(arguments: Any) -> None:
    function = message(calling([{"function": {"name": "now", "arguments": arguments}}]))["tool_calls"][0]["function"]
    assert function == {"name": "now", "arguments": {}}


def test_ids_of_calls_stay() -> None:
    assert message(calling([{**FUNCTION, "id": "c1"}]))["tool_calls"] == [{**CALL, "id": "c1"}]


@pytest.mark.parametrize(
    "result",
    [{"role": "function", "content": "yes"}, {"from": "observation", "value": "yes"}, {"role": "tool", "value": "yes"}],
)
def test_results_of_calls_are_tool_messages(result: dict[str, Any]) -> None:
    assert message({"messages": [result]}) == {"role": "tool", "content": "yes"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            calling([{"function": {"name": "rain", "arguments": "city=Oslo"}}]),
            "arguments, which is a string",
        ),
        (calling([{"function": {"name": "rain", "arguments": "[1]"}}]), "has a list for arguments, not an object"),
        (calling([{"function": {"name": "rain", "arguments": json.dumps("{}")}}]), "has a str for arguments"),
        (calling([{"function": {"arguments": {}}}]), "has no name of a function"),
        (calling([{"name": "rain", "input": {}}]), r"no arguments, and keys \['input'\]"),
        (calling([{"function": {"name": "rain"}, "arguments": {}}]), "has arguments beside its function"),
        (calling("rain(Oslo)"), "tool_calls is a string that is not JSON"),
        (calling([3]), "tool call 1, is a int"),
        (calling(3), "has a int for tool_calls"),
        (calling([CALL], function_call=FUNCTION), "both tool_calls and function_call"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "only the assistant can"),
        ({"conversations": [{"from": "function_call", "value": "rain"}]}, "function call is a string that is not JSON"),
        ({"conversations": [{"from": "function_call", "value": ""}]}, "a function call without a function"),
        ({"messages": [], "tools": ["rain"]}, "tool 1 is a string that is not JSON"),
        (
            {"messages": [], "tools": [{"api": "rain"}]},
            r"neither a function nor of a named type; it has keys \['api'\]",
        ),
    ],
)
def test_call_that_cannot_be_read_is_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:3: .*" + said):
        parse_row(row, "auto", "rows.jsonl:3")


def test_null_arguments_of_an_object_stay_if_its_tool_declares_them() -> None:
    row = calling([{"function": {"name": "rain", "arguments": {"city": None, "a": None, "b": 1}}}])
    assert message(row)["tool_calls"][0]["function"]["arguments"] == {"city": None, "a": None, "b": 1}
    assert message({**row, "tools": [TOOL]})["tool_calls"][0]["function"]["arguments"] == {"city": None, "b": 1}
    text = calling([{"function": {"name": "rain", "arguments": json.dumps({"city": None, "a": None, "b": 1})}}])
    assert message({**text, "tools": [TOOL]}) == message(row)
    other = {"type": "function", "function": {"name": "sum", "parameters": SCHEMA}}
    assert message({**row, "tools": [other, {"type": "search"}]}) == message(row)


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": TOOL},
        {"tools": [TOOL["function"]]},
        {"tools": [{"name": "rain", "description": "x", "input_schema": SCHEMA}]},
        {"tools": [{"type": "function", **TOOL["function"]}]},  # type: ignore[dict-item]
        {"tools": json.dumps([{**TOOL["function"], "parameters": json.dumps(SCHEMA)}])},  # type: ignore[dict-item]
        {"tools": [{"type": "function", "function": json.dumps(TOOL["function"])}]},
        {"tools": [{**TOOL, "strict": None}]},
        {"functions": [TOOL["function"]], "tools": None},
    ],
)
def test_every_spelling_of_a_tool_reads_the_same(columns: dict[str, Any]) -> None:
    assert parse_row({"messages": [], **columns}, "auto", "x").tools == (TOOL,)
