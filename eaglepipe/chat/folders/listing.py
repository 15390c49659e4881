"""Data files of a source on this machine: one file, the files that a pattern matches, or a folder's of one split."""

import glob
import json
from itertools import takewhile
from pathlib import Path

from eaglepipe.chat.folders.dataset_card import declared_files
from eaglepipe.chat.folders.splits import choose_among_matches, choose_split, split_of
from eaglepipe.chat.readers import KINDS, data_suffix
from eaglepipe.errors import DataError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.recipe.config import SourceConfig

_METADATA = {
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("config.json", "metadata.json", "croissant.json"),
}
_BESIDE_REGENERATED = (".report.json", ".left-out.jsonl")


def is_local(source: SourceConfig) -> bool:
    """Return whether a file or folder of the source's path exists, or the path is a pattern."""
    return Path(source.path).expanduser().exists() or is_pattern(source)


def is_pattern(source: SourceConfig) -> bool:
    """Return whether the path has wildcards (`*`, `?`, `[...]`) and is not itself the name of a file."""
    return glob.has_magic(source.path) and not Path(source.path).expanduser().exists()


def pattern_folder(source: SourceConfig) -> Path:
    """Return the part of a pattern's path that has no wildcards."""
    parts = Path(source.path).expanduser().parts
    return Path(*takewhile(lambda part: not glob.has_magic(part), parts))


def local_files(source: SourceConfig) -> list[Path]:
    """Return the files of a source for which `is_local` holds, in the order in which they are read.

    Raises:
        DataError: no data file, or none of this split and config; names what is there.
    """
    path = Path(source.path).expanduser()
    if source.revision is not None:
        raise DataError(f"{source.path}: revision {source.revision!r} is for datasets of the Hub; this path is local")
    if is_pattern(source):
        return _matching_files(source)
    return _folder_files(path, source) if path.is_dir() else [_one_file(path, source)]


def _one_file(path: Path, source: SourceConfig) -> Path:
    if data_suffix(path) is None:
        raise DataError(f"{path}: not one of {KINDS}")
    unused = "config" if source.config is not None else "split"
    if unused == "config" or source.split not in {"train", split_of(path, path.parent)}:
        raise DataError(f"{path} is one file, all of which is read: remove its {unused} {getattr(source, unused)!r}")
    return path


def _matching_files(source: SourceConfig) -> list[Path]:
    only_folders = "/" if source.path.endswith("/") else ""
    matches = [Path(match) for match in _glob(f"{Path(source.path).expanduser()}{only_folders}")]
    if not matches:
        raise DataError(f"{source.path}: no file or folder matches this pattern")
    files = [file for file in matches if _is_data(file)]
    if files:
        return choose_among_matches(files, pattern_folder(source), source)
    nested = [file for folder in matches if folder.is_dir() for file in _folder_files(folder, source)]
    if not nested:
        raise DataError(f"{source.path}: of the {len(matches)} files that match, none is one of {KINDS}")
    return nested


def _folder_files(folder: Path, source: SourceConfig) -> list[Path]:
    """List the files of one split, by what the folder declares, or else by their names."""
    if (saved := _saved_files(folder, source)) is not None:
        return saved
    if (declared := declared_files(folder, source)) is not None:
        if unread := [file for file in declared if data_suffix(file) is None]:
            raise DataError(f"{unread[0]}: not one of {KINDS}")
        return declared
    files = [file for name in _glob(f"{glob.escape(str(folder))}/**") if _is_data(file := Path(name))]
    files = [file for file in files if not any(part.startswith("__") for part in file.relative_to(folder).parts)]
    if not files:
        raise DataError(f"{folder}: no file ending in {KINDS}")
    return choose_split(files, folder, source)


def _saved_files(folder: Path, source: SourceConfig) -> list[Path] | None:
    """List the files of a dataset that `save_to_disk` wrote, alone or by split; None for any other folder."""
    if source.config is not None and any((folder / source.config / name).exists() for name in _METADATA):
        folder, chosen = folder / source.config, None
    else:
        chosen = source.config
    splits, split = folder / "dataset_dict.json", source.split
    is_alone = (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
    if not is_alone and not splits.exists():
        return None
    if chosen is not None:
        raise DataError(f"{folder}: a saved dataset without configs: remove its config {chosen!r}")
    try:
        with explained_read_errors(folder, absent=DataError):
            if is_alone:
                return _data_files(folder)
            names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
            if split not in names:
                raise DataError(f"{folder}: no files of split {split!r}; there are {', '.join(sorted(names))}")
            return _data_files(folder / split)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{folder}: a saved dataset that cannot be read: {error!r}") from None


def _data_files(saved: Path) -> list[Path]:
    state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
    return [saved / file["filename"] for file in state["_data_files"]]


def _glob(pattern: str) -> list[str]:
    """List what matches, sorted; names that begin with a dot only if the pattern asks for them."""
    return sorted(set(glob.glob(pattern, recursive=True)))  # noqa: PTH207 (Path.glob enters no linked folder)


def _is_data(file: Path) -> bool:
    if data_suffix(file) is None or file.name in _METADATA or not file.is_file():
        return False
    if file.match("cache-*.arrow") and any((file.parent / name).exists() for name in _METADATA):
        return False  # of a `map` over a dataset of `datasets`
    return not any(
        file.name.endswith(end) and file.with_name(file.name.removesuffix(end)).exists() for end in _BESIDE_REGENERATED
    )
