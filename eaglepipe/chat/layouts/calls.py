"""Tool calls and tools in the spellings that they are published in, turned into the one that templates read.

A call becomes `{"type": "function", "function": {"name", "arguments"}}` with an object for its arguments, as servers
give it to a template, and a tool `{"type": "function", "function": {"name", "parameters", ...}}`.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from eaglepipe.chat.faults import RowError
from eaglepipe.chat.layouts.stored import as_list, decoded, rows_of_columns, without_nulls

Call = dict[str, Any]

_decoded = partial(decoded, fault="unreadable_tools")
_ARGUMENTS = ("arguments", "parameters", "args")
_TOOL_KEYS = {"input_schema": "parameters"}
_MAY_BE_NULL = ("default", "const")  # of a JSON schema
_BESIDE_ARGUMENTS = {"name", "id", "type", "index", "description"}


class _FromText(dict[str, Any]):
    """Arguments that were JSON text, whose nulls no table added."""


def read_tool_calls(raw: Any, what: str, field: str = "tool_calls") -> list[Call]:
    """Return the calls of one message: a list of calls or a single one, each or the whole possibly as JSON text.

    Raises:
        RowError: a call that cannot be read; the message begins with `what`.
    """
    value = as_list(_decoded(raw, f"{what}: its {field}"))
    if value is None or value == {}:
        return []
    if isinstance(value, Mapping):
        rows = rows_of_columns(value, f"{what}: its {field}")
        value = [value] if rows is None else rows
    if not isinstance(value, list):
        raise RowError("unreadable_tools", f"{what} has a {type(value).__name__} for {field}, not a list of calls")
    return [_call(call, f"{what}, tool call {n},") for n, call in enumerate(value, start=1)]


def read_function_call(raw: Any, what: str) -> list[Call]:
    """Return the calls of a turn or a `function_call` field that holds the bare function, or a list of them.

    Raises:
        RowError: no call can be read from it; the message begins with `what`.
    """
    calls = read_tool_calls(raw, what, "function call")
    if not calls:
        raise RowError("unreadable_tools", f"{what} is a function call without a function")
    return calls


def read_tools(raw: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    """Return the tools of a row, or None without any.

    Raises:
        RowError: not a list of tools; the message begins with `where`.
    """
    value = as_list(_decoded(raw, f"{where}: `tools`"))
    if isinstance(value, Mapping):
        rows = rows_of_columns(value, f"{where}: `tools`")
        value = [value] if rows is None and value else rows
    if not value:
        return None
    if not isinstance(value, list):
        raise RowError("unreadable_tools", f"{where}: `tools` is not a list of objects")
    return tuple(_tool(tool, f"{where}: tool {n}", where) for n, tool in enumerate(value, start=1))


def declared_only(message: dict[str, Any], tools: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Leave out null arguments that a call's tool does not declare: keys of other rows, which exports of tables add."""
    if "tool_calls" not in message:
        return message
    declared = {tool["function"].get("name"): _properties(tool["function"]) for tool in tools if "function" in tool}
    calls = [_with_declared(call, declared.get(call["function"]["name"])) for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any] | None:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else None


def _with_declared(call: Call, properties: Mapping[str, Any] | None) -> Call:
    if properties is None:
        return call
    arguments = call["function"]["arguments"]
    if isinstance(arguments, _FromText):
        return call
    kept = {key: value for key, value in arguments.items() if value is not None or key in properties}
    return {**call, "function": {**call["function"], "arguments": kept}}


def _call(raw: Any, what: str) -> Call:
    value = _decoded(raw, what)
    if not isinstance(value, Mapping):
        raise RowError("unreadable_tools", f"{what} is a {type(value).__name__}, not an object")
    call = {str(key): entry for key, entry in value.items() if entry is not None}
    if "function" in call:
        if astray := [key for key in _ARGUMENTS if key in call]:
            raise RowError("unreadable_tools", f"{what} has {astray[0]} beside its function, not in it")
        return {**call, "function": _function(call["function"], what)}
    kept: Call = {key: call[key] for key in ("id", "index") if key in call}
    bare = {key: entry for key, entry in call.items() if key not in kept}
    return {**kept, "type": "function", "function": _function(bare, what)}


def _function(raw: Any, what: str) -> dict[str, Any]:
    value = _decoded(raw, what)
    if not isinstance(value, Mapping):
        raise RowError("unreadable_tools", f"{what} has a {type(value).__name__} for function, not an object")
    function = {str(key): entry for key, entry in value.items() if entry is not None}
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("unreadable_tools", f"{what} has no name of a function; it has keys {sorted(function)}")
    named = [key for key in _ARGUMENTS if key in function]
    if not named and (unknown := function.keys() - _BESIDE_ARGUMENTS):
        raise RowError("unreadable_tools", f"{what} has no arguments, and keys {sorted(unknown)} that are not known")
    others = {key: entry for key, entry in function.items() if key not in (*named[:1], "type")}
    return {**others, "arguments": _arguments(function[named[0]] if named else None, what)}


def _arguments(raw: Any, what: str) -> dict[str, Any]:
    """Return arguments as an object; templates write them as JSON, which a text would turn into JSON within JSON."""
    value = _decoded(raw, f"{what} has arguments, which")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowError("unreadable_tools", f"{what} has a {type(value).__name__} for arguments, not an object")
    arguments = {str(key): entry for key, entry in value.items()}
    return _FromText(arguments) if isinstance(raw, str) else arguments


def _tool(raw: Any, what: str, where: str) -> dict[str, Any]:
    value = _decoded(raw, what)
    if not isinstance(value, Mapping):
        raise RowError("unreadable_tools", f"{where}: `tools` is not a list of objects")
    tool: dict[str, Any] = without_nulls(value, keep=_MAY_BE_NULL)
    if "function" in tool:
        return {**tool, "function": _schema(tool["function"], what)}
    if isinstance(tool.get("name"), str) and tool.get("type", "function") == "function":
        bare = {_TOOL_KEYS.get(key, key): entry for key, entry in tool.items() if key != "type"}
        return {"type": "function", "function": _schema(bare, what)}
    if isinstance(tool.get("type"), str):
        return tool
    raise RowError("unreadable_tools", f"{what} is neither a function nor of a named type; it has keys {sorted(tool)}")


def _schema(raw: Any, what: str) -> dict[str, Any]:
    value = _decoded(raw, f"{what} has a function that")
    if not isinstance(value, Mapping):
        raise RowError("unreadable_tools", f"{what} has a {type(value).__name__} for function, not an object")
    if isinstance(value.get("parameters"), str):
        return {**value, "parameters": _decoded(value["parameters"], f"{what} has parameters that")}
    return dict(value)
