"""Recipe files and overrides as plain mappings, before they are validated."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from eaglepipe.errors import ConfigError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.recipe.scalars import PlainLoader

_MERGE = "tag:yaml.org,2002:merge"  # of the key in `<<: *section`

_UNREADABLE = (yaml.YAMLError, ValueError, KeyError, RecursionError)  # beside YAMLError, of tags such as `!!int abc`


class _UniqueKeyLoader(PlainLoader):
    """PlainLoader that refuses duplicate keys, of which YAML would silently keep the last."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
    for key in keys:
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no key", node.start_mark)
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping of sections in a recipe file.

    Raises:
        ConfigError: the file is absent, not YAML, or not a mapping.
    """
    try:
        with explained_read_errors(path, absent=ConfigError):
            if not path.exists():
                raise ConfigError(f"no recipe at {path}; `eaglepipe recipe ls` lists those that ship")
            text = path.read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
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
        value = yaml.load(text, Loader=_UniqueKeyLoader) if text else None
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
