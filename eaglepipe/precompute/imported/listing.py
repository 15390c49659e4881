"""Names, sizes and times of the files of another tool, by which a begun import is found again without reading them.

What is found so is still compared with its digest, sample by sample, when it is imported.
"""

import os
from pathlib import Path

import xxhash

from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.errors import CorruptError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_json
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.precompute.imported.formats import open_foreign
from eaglepipe.precompute.imported.reading import walk_files
from eaglepipe.precompute.inputs import Stage1Inputs

_LISTING = f"{WORK_FOLDER}/listing.json"


def folder_listing(inputs: Stage1Inputs) -> str:
    """Return a hash of the paths, sizes and times of all files of an imported source."""
    source = inputs.recipe.data.imported
    assert source is not None
    root, state = open_foreign(source).root, xxhash.xxh3_128()
    with explained_read_errors(root):
        for path in walk_files(root, ("",)):
            stat = path.stat()
            state.update(os.fsencode(path.relative_to(root)) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return state.hexdigest()


def record_listing(inputs: Stage1Inputs, folder: Path) -> None:
    """Record the listing in a begun cache, if its states are imported."""
    if inputs.recipe.data.imported is not None:
        publish_json(folder / _LISTING, {"listing": folder_listing(inputs)})


def recorded_listing(folder: Path) -> str | None:
    """Return the listing of a begun cache; None if it has none."""
    path = folder / _LISTING
    if not path.exists():
        return None
    try:
        return str(read_json_object(path).get("listing"))
    except CorruptError:
        return None
