"""Scalars of a recipe: what YAML 1.1 would read as a date, a duration or a boolean stays the text that was written.

Also the check of settings that hold any value, such as variables of a chat template.
"""

import math
import re
from collections.abc import Callable
from datetime import date
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS_TAG = "!ambiguous"
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"([-+]?[0-9][0-9_]*\.[0-9_]*|[-+]?\.[0-9][0-9_]*)([eE][-+][0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)$")
_AMBIGUOUS = re.compile(
    r"(yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|[-+]?0[0-9_]+|[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+)$"
)
_AMBIGUOUS_FIRST = "yYnNoO-+.0123456789"


class AmbiguousText(str):
    """Text without quotes that versions of YAML read differently: yes and no, 0123, 1e5."""

    __slots__ = ()


class PlainLoader(yaml.SafeLoader):
    """SafeLoader whose unquoted scalars are numbers, true, false and null, and else text."""


class PlainDumper(yaml.SafeDumper):
    """SafeDumper that quotes text which PlainLoader would read as ambiguous."""


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in {_TAG + "merge", _TAG + "null"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    (_TAG + "int", _INT, "-+0123456789"),
    (_TAG + "float", _FLOAT, "-+.0123456789"),
    (_TAG + "bool", _BOOL, "tTfF"),
    (_AMBIGUOUS_TAG, _AMBIGUOUS, _AMBIGUOUS_FIRST),
):
    PlainLoader.add_implicit_resolver(_tag, _pattern, list(_first))
PlainDumper.add_implicit_resolver(_AMBIGUOUS_TAG, _AMBIGUOUS, list(_AMBIGUOUS_FIRST))
PlainLoader.add_constructor(_AMBIGUOUS_TAG, lambda _, node: AmbiguousText(node.value))


def json_object(value: Any) -> Any:
    """Return a mapping with dates as ISO text and all other values as JSON has them; what is no mapping, as it is.

    Raises:
        ValueError: a key or value that JSON cannot hold, or that YAML leaves open.
    """
    if not isinstance(value, dict):
        return value
    try:
        return _json_value(value, "")
    except RecursionError:
        raise ValueError("nested too deeply, or in itself") from None


def _json_value(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return {_key(key, place): _json_value(item, f"{place}{key}.") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{place}{number}.") for number, item in enumerate(value)]
    if isinstance(value, date):
        return value.isoformat()
    for is_wrong, problem in _WRONG_VALUES:
        if is_wrong(value):
            raise ValueError(f"{place.removesuffix('.')}: {problem.format(value=value, kind=type(value).__name__)}")
    return value


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{place}{key}: a key is text; write it in quotes: {str(key)!r}")
    return str(key)


def _is_no_utf8(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


_WRONG_VALUES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (
        lambda value: isinstance(value, AmbiguousText),
        "{value} without quotes may be read as text or not; write it in quotes, or as true, false or a plain number",
    ),
    (
        lambda value: isinstance(value, float) and not math.isfinite(value),
        "{value} is no finite number; if it is text, write it in quotes",
    ),
    (_is_no_utf8, "{value!r} holds half a surrogate pair, which has no UTF-8"),
    (
        lambda value: value is not None and not isinstance(value, str | bool | int | float),
        "a {kind} is no value of a template; write it as text in quotes",
    ),
)
