"""Rows of a dataset on the Hub, through `datasets`: downloaded once, then read from its memory-mapped copy."""

from collections.abc import Iterator

import datasets

from eaglepipe.chat.readers import PlacedRow, batch_rows
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig

_BATCH_ROWS = 256


def hub_rows(source: SourceConfig) -> Iterator[PlacedRow]:
    """("owner/name[split] row n", row) in order.

    Raises:
        DataError: no such dataset, config, split or revision, or the Hub cannot be reached.
    """
    try:
        dataset = datasets.load_dataset(source.path, source.config, split=source.split, revision=source.revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, KeyError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{source.path}: no such file or folder here, and the Hub gives no dataset of this name, config, split "
            f"and revision: {problem}"
        ) from None
    tables = dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    yield from batch_rows(tables, f"{source.path}[{source.split}]")
