"""Splits and configs of a folder's files, as their names and sub-folders give them.

Read as `datasets` reads them, with these differences: sharded files have the split of their name in any folder, a split
may have any name, and sub-folders with the same split are configs, of which one has to be chosen.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.chat.readers import data_suffix, stem
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig

_SHARDED = re.compile(r"(?:.*-)?(\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-\w+)?")
_NO_SPLIT = {"data", "part", "parts", "shard", "shards", "chunk", "file", "rows", "output"}  # of `part-00000-of-00002`
_LISTED = 12
_NUMBERS = re.compile(r"(?:[-_. ]*(?:part|shard|chunk|file)?[-_. ]*\d+)+$")
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORD = re.compile(rf"(?:^|[-._ \d])({'|'.join(_WORDS)})(?=[-._ \d]|$)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A file of a folder, with the split that its name or a sub-folder has, and the sub-folders around it."""

    file: Path
    split: str | None
    is_sharded: bool  # so that its split is its name up to the numbers, as the Hub writes it
    config: str
    names: frozenset[str]  # its stem and its sub-folders, any of which may be asked for

    @property
    def word(self) -> str | None:
        """`train`, `validation` or `test`, if the split is one of their words, or may just contain one."""
        match = None if self.split is None else _WORD.search(self.split)
        if match is None or (self.is_sharded and match[0] != self.split):
            return None
        return _WORDS[match[1].lower()]


def split_of(file: Path, root: Path) -> str | None:
    """Return the split that a file's name, or a folder between it and `root`, has."""
    return _place(file, root).split


def choose_split(files: Sequence[Path], root: Path, source: SourceConfig) -> list[Path]:
    """Return the files of the source's split and config; if no name has a split, `train` is all of them.

    Raises:
        DataError: no such split or config, several configs of which none is chosen, or files with and without a split.
    """
    placed = _of_config([_place(file, root) for file in files], root, source)
    splits = _splits(placed)
    chosen = placed if not splits and source.split == "train" else _of_split(placed, root, source)
    kinds = {data_suffix(item.file) for item in placed if item.split is not None}
    for item in placed if splits else ():
        suffix = data_suffix(item.file)
        if item.split is None and item not in chosen and (suffix in kinds or suffix != ".json"):
            raise DataError(
                f"{root}: {item.file.name} has no split in its name, and others have ({', '.join(sorted(splits))}); "
                f"choose files by a pattern as the path, such as {root}/*{suffix}"
            )
    return [item.file for item in _of_one_config(chosen, root)]


def choose_among_matches(files: Sequence[Path], root: Path, source: SourceConfig) -> list[Path]:
    """Return the files that a pattern matched; if all have a split and not the same one, those of the source's.

    Raises:
        DataError: no such split or config.
    """
    placed = _of_config([_place(file, root) for file in files], root, source)
    splits = {item.split for item in placed}
    if source.split == "train" and (len(splits) == 1 or None in splits):
        return [item.file for item in placed]
    return [item.file for item in _of_split(placed, root, source)]


def _place(file: Path, root: Path) -> _Placed:
    folders, name = file.relative_to(root).parts[:-1], stem(file)
    plain = _NUMBERS.sub("", name)
    sharded = match[1] if (match := _SHARDED.fullmatch(name)) and match[1].lower() not in _NO_SPLIT else None
    depth = next((index for index, folder in enumerate(folders) if _WORD.search(folder)), len(folders))
    own = sharded or (plain if _WORD.search(plain) else None)
    is_clear = plain.lower() in _WORDS or (sharded is not None and _WORD.search(sharded) is not None)
    in_folder = depth < len(folders) and not is_clear
    split = folders[depth] if in_folder else own
    around = folders[:depth] if in_folder else tuple(folder for folder in folders if folder != own)
    return _Placed(
        file=file,
        split=split,
        is_sharded=split is not None and split == sharded,
        config="/".join(folder for folder in around if folder != "data"),
        names=frozenset({name, plain, *folders}),
    )


def _of_split(placed: Sequence[_Placed], root: Path, source: SourceConfig) -> Sequence[_Placed]:
    wanted = source.split
    if exact := [item for item in placed if item.split == wanted]:
        return exact
    alike = [item for item in placed if item.word is not None and item.word == _WORDS.get(wanted)]
    if alike and not _are_splits_of_their_own(_splits(alike)):
        return alike
    if named := [item for item in placed if wanted in item.names]:
        return named
    splits = _splits(placed)
    is_one_name = len(splits) == 1 and all(item.split is not None for item in placed)
    if wanted == "train" and is_one_name and not _WORD.search(min(splits)):
        return placed  # `corpus-00000-of-00002` is the name of all files, and no split
    there = (
        _names(splits) if splits else _names(str(item.file.relative_to(root)) for item in placed) + ", named by none"
    )
    raise DataError(f"{root}: no files of split {wanted!r}; there are {there}")


def _are_splits_of_their_own(splits: set[str]) -> bool:
    """Return whether names such as train_sft and train_gen begin alike; a_train and b_train are parts of one split."""
    return len(splits) > 1 and all((match := _WORD.match(split)) and match[0] != split for split in splits)


def _of_config(placed: Sequence[_Placed], root: Path, source: SourceConfig) -> Sequence[_Placed]:
    wanted = source.config
    if wanted is None:
        return placed
    chosen = [
        item
        for item in placed
        if wanted in {item.config or "default", *item.names} or item.config.startswith(f"{wanted}/")
    ]
    if not chosen:
        raise DataError(
            f"{root}: no files of config {wanted!r}; there are {_names({item.config or 'default' for item in placed})}"
        )
    return chosen


def _of_one_config(chosen: Sequence[_Placed], root: Path) -> Sequence[_Placed]:
    configs = {item.config for item in chosen if item.split is not None}
    if len(configs) < 2:
        return chosen
    if "default" in configs:
        return [item for item in chosen if item.config == "default"]
    raise DataError(
        f"{root}: several configs ({_names({config or 'default' for config in configs})}); choose one by `config`"
    )


def _splits(placed: Iterable[_Placed]) -> set[str]:
    return {item.split for item in placed if item.split is not None}


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:_LISTED]) + (f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else "")
