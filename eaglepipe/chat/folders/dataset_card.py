"""Files of the configs and splits that a folder's README.md declares, as dataset repositories on the Hub do."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, metadata_load

from eaglepipe.chat.folders.splits import choose_split
from eaglepipe.chat.readers import data_suffix
from eaglepipe.errors import DataError, first_line
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.recipe.config import SourceConfig

_MOST_VALUES = 100_000


def declared_files(folder: Path, source: SourceConfig) -> list[Path] | None:
    """Return the files of the source's config and split, sorted; None if nothing is declared, or nothing of it is here.

    Raises:
        DataError: a declaration that cannot be read, or no such config or split in it.
    """
    card = folder / "README.md"
    metadata = _metadata(card)
    if not metadata.get("configs"):
        return None
    import datasets  # slow to import, and only needed here

    try:
        configs = datasets.utils.metadata.MetadataConfigs.from_dataset_card_data(DatasetCardData(**metadata))
        name = source.config or configs.get_default_config_name()
        if name not in configs:
            problem = "several configs" if source.config is None else f"no config {name!r}"
            raise DataError(f"{card}: {problem}; choose one by `config`: {', '.join(sorted(configs))}")
        entry = configs[name]
        base = folder / entry.get("data_dir", "")
        if "data_files" not in entry:
            return _named_files(base, source) if "data_dir" in entry else None
        patterns = datasets.data_files.sanitize_patterns(entry["data_files"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{card}: its `configs` cannot be read: {first_line(error)}") from None
    with explained_library_errors(DataError, f"{card}: its `configs` cannot be read"):
        files = {
            split: _resolved(datasets.data_files.resolve_pattern, split_patterns, base)
            for split, split_patterns in patterns.items()
        }
    if not any(files.values()):
        return None
    if source.split not in files:
        raise DataError(f"{folder}: no files of split {source.split!r}; there are {', '.join(files)}")
    if not files[source.split]:
        wanted = ", ".join(patterns[source.split])
        raise DataError(f"{folder}: no file of split {source.split!r}, which README.md declares as {wanted}")
    return files[source.split]


def _named_files(base: Path, source: SourceConfig) -> list[Path]:
    files = sorted(file for file in base.rglob("*") if data_suffix(file) is not None and file.is_file())
    return choose_split(files, base, source.model_copy(update={"config": None}))


def _metadata(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    try:
        with explained_read_errors(card, absent=DataError):
            metadata = metadata_load(card) or {}
        _check_values(metadata)
        return metadata
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{card}: its metadata cannot be read: {first_line(error)}") from None


def _check_values(metadata: Any) -> None:
    """Raise ValueError for more values than any card has, which aliases of YAML may stand for in a few lines."""
    rest, count = [metadata], 0
    while rest:
        item = rest.pop()
        rest += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, those of aliases included")


def _resolved(resolve: Any, patterns: list[str], base: Path) -> list[Path]:
    files: set[Path] = set()
    for pattern in patterns:
        try:
            files |= {Path(file) for file in resolve(pattern, base.resolve().as_posix())}
        except FileNotFoundError:
            continue
    return sorted(files)
