"""Recipe files and overrides as plain mappings, before they are validated."""

from collections.abc import Hashable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from eaglepipe.errors import ConfigError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.recipe.scalars import PlainLoader

_MERGE = "tag:yaml.org,2002:merge"  # of the key in `<<: *section`
_MOST_BYTES, _MOST_VALUES = 2**20, 50_000
_TOO_DEEP = "nested too deeply, or in itself"
_TOO_MANY = f"more than {_MOST_VALUES:,} values, those of aliases included"

_UNREADABLE = (yaml.YAMLError, ValueError, KeyError)  # beside YAMLError, of tags such as `!!int abc`


class _UniqueKeyLoader(PlainLoader):
    """PlainLoader that refuses duplicate keys, of which YAML would silently keep the last, and too many values."""

    num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.num_values += 1
        if self.num_values > _MOST_VALUES:  # long before the end, as the parser is slow
            raise ValueError(_TOO_MANY)
        return super().compose_node(parent, index)


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Hashable] = set()
    for key_node, _ in node.value:
        key = None if key_node.tag == _MERGE else loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no key", node.start_mark)
        if key_node.tag != _MERGE and key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        keys.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _load(text: str) -> Any:
    """Return the value of one YAML document.

    Raises:
        one of _UNREADABLE: malformed, or more than a recipe holds, aliases counted as often as they are used.
    """
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _num_values(node, {}) > _MOST_VALUES:
            raise ValueError(_TOO_MANY)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the number of values that a node holds, aliases followed; `known` holds those of earlier nodes."""
    if id(node) in known:
        if (earlier := known[id(node)]) is None:
            raise ValueError(_TOO_DEEP)
        return earlier
    known[id(node)] = None
    children = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
    total = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_num_values(child, known) for child in children)
    known[id(node)] = total
    return total


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping of sections in a recipe file.

    Raises:
        ConfigError: the file is absent, not YAML, or not a mapping.
    """
    try:
        with explained_read_errors(path, absent=ConfigError):
            if not path.exists():
                raise ConfigError(f"no recipe at {path}; `eaglepipe recipe ls` lists those that ship")
            if path.stat().st_size > _MOST_BYTES:
                raise ConfigError(f"{path}: {path.stat().st_size:,} bytes is no recipe; {_MOST_BYTES:,} at most")
            text = path.read_text(encoding="utf-8")
        raw = _load(text)
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, this is a {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply `section.key=value` in place, making sections that are absent; a number among the keys indexes a list.

    Raises:
        ConfigError: another form, a value that is not YAML, or a path through something that is not a section.
    """
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = _load(text) if text else None
    except _UNREADABLE as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    *parents, leaf = path.split(".")
    node: Any = raw
    for parent in parents:
        key = _key_in(node, parent, override)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    node[_key_in(node, leaf, override)] = value


def _key_in(node: dict[str, Any] | list[Any], key: str, override: str) -> Any:
    """Return the key as it is, or as an index if `node` is a list."""
    if isinstance(node, dict):
        return key
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"override {override!r}: {key!r} is not an index into a list of {len(node)}")
    return int(key)
