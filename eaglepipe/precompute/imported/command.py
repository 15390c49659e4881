"""`eaglepipe cache import`: stage 1 of a recipe whose states come from a folder of another tool."""

import json
from collections.abc import Sequence
from pathlib import Path

from eaglepipe.precompute.imported.formats import check_format
from eaglepipe.precompute.imported.reading import check_folder


def import_overrides(tool: str, folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return the overrides by which a recipe takes tokens and states from a folder.

    Raises:
        ConfigError: no tool of this name.
        DataError: the folder is missing.
    """
    check_format(tool)
    check_folder(folder)
    source = {"path": str(folder), "format": tool}
    return [*overrides, f"data.sources={json.dumps([source], ensure_ascii=False)}", "data.generate=null"]
