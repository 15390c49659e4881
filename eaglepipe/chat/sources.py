"""Conversations of a recipe's sources, in order, and the fingerprint of their content.

The Hub is asked only for a name that cannot be meant as a local path.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import xxhash

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FaultyRow, RowError
from eaglepipe.chat.folders.listing import is_local, is_pattern, local_files, pattern_folder
from eaglepipe.chat.formats import Content, parse_row
from eaglepipe.chat.readers import READERS, PlacedRow, data_suffix, file_rows, hub_rows, stem
from eaglepipe.errors import DataError
from eaglepipe.files.system_errors import read_error
from eaglepipe.recipe.config import SourceConfig
from eaglepipe.recipe.tree import Recipe

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = {*READERS, ".txt", ".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz", ".zip", ".yaml", ".yml"}


@dataclass(frozen=True, kw_only=True)
class Conversation(Content):
    """One row of a source, checked: either `messages`, or `input_ids` with `turns` when it came tokenised."""

    sample_id: str
    source: str
    where: str  # "file:line" or the like, for messages to the user
    digest: bytes  # [16] xxh3_128 of the content, metadata columns left out

    @property
    def has_assistant_turn(self) -> bool:
        """Whether an assistant message may be supervised; for tokenised rows, their mask decides later."""
        if self.messages is None:
            return True
        roles = enumerate(message["role"] for message in self.messages)
        return any(role == "assistant" and index not in self.context for index, role in roles)


def iter_conversations(sources: Sequence[SourceConfig]) -> Iterator[Conversation | FaultyRow]:
    """Yield the conversation of every row of every source, or the row's fault, in order, one at a time.

    Raises:
        DataError: a source that is missing, cannot be read or has no rows.
    """
    for source in sources:
        if source.has_states:
            raise DataError(
                f"{source.path}: holds tokens and states of {source.format}, no conversations; `eaglepipe cache import "
                f"{source.format} {source.path} RECIPE` makes a cache of it, and with --dry-run its price"
            )
        name, empty = source_name(source), True
        for where, row in islice(_taken(_rows(source), source.weight), source.max_samples):
            empty = False
            try:
                yield _conversation(row, where, name, source)
            except RowError as error:
                yield FaultyRow(where=where, source=name, reason=error.reason, detail=str(error))
            except DataError as error:
                yield FaultyRow(where=where, source=name, reason="malformed", detail=str(error))
        if empty:
            raise DataError(f"{source.path}: no rows")


def check_regenerated(recipe: Recipe) -> None:
    """Raise DataError if a source is the output of `data regenerate`, and that has not run yet."""
    output = None if recipe.regenerate is None else Path(recipe.regenerate.output).expanduser()
    for source in recipe.data.sources:
        if output == Path(source.path).expanduser() and not output.exists():
            raise DataError(f"{source.path}: not written yet; run `eaglepipe data regenerate` with this recipe first")


class CorpusFingerprint:
    """xxh3_128 over the ids and contents of the conversations that pass through, in order.

    Neither paths nor faulty rows count, since no sample follows from them.
    """

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()
        self._places = xxhash.xxh3_128()
        self.num_rows = 0
        self.faults = DropLog()

    def through(self, rows: Iterable[Conversation | FaultyRow]) -> Iterator[Conversation | FaultyRow]:
        """Pass rows on, each counted once it was read."""
        for row in rows:
            if isinstance(row, FaultyRow):
                self.faults.add(row.reason, where=row.where, source=row.source, detail=row.detail)
                self._places.update(self.num_rows.to_bytes(8, "little"))
            else:
                sample_id = row.sample_id.encode("utf-8")
                self._state.update(len(sample_id).to_bytes(8, "little") + sample_id + row.digest)
            self.num_rows += 1
            yield row

    def hexdigest(self) -> str:
        """Return the fingerprint of all conversations so far."""
        return self._state.hexdigest()

    def row_digest(self) -> str:
        """Return a fingerprint that also says which rows were faulty, for readers that count rows."""
        return self.hexdigest() + (f"+{self._places.hexdigest()}" if self.faults.counts else "")


def fingerprint_sources(sources: Sequence[SourceConfig]) -> CorpusFingerprint:
    """Read all conversations of the sources for their fingerprint."""
    fingerprint = CorpusFingerprint()
    deque(fingerprint.through(iter_conversations(sources)), maxlen=0)
    return fingerprint


def source_name(source: SourceConfig) -> str:
    """Return the label of a source: its `name`, else its file's stem or the last part of its path or Hub id."""
    if source.name:
        return source.name
    path = pattern_folder(source) if is_pattern(source) else Path(source.path).expanduser()
    return path.resolve().name if data_suffix(path) is None else stem(path)


def is_hub_id(path: str) -> bool:
    """Return whether a path that does not exist may be a Hub id: `owner/name`, with nothing local about it."""
    looks_local = Path(path).suffix.lower() in _FILE_SUFFIXES or Path(path).parent.exists()
    return bool(_HUB_ID.fullmatch(path)) and not looks_local


def _conversation(row: dict[str, Any] | RowError, where: str, name: str, source: SourceConfig) -> Conversation:
    if isinstance(row, RowError):
        raise row
    own_id = row.get("id")
    try:
        content = _without_opening(parse_row(row, source.format, where))
        digest, short = content.digests()
        sample_id = f"{name}:{short if own_id is None or own_id == '' else own_id}"
        sample_id.encode("utf-8")
    except UnicodeEncodeError as error:
        code_point = f"U+{ord(error.object[error.start]):04X}"
        message = f"{where}: half a surrogate pair ({code_point}) in a text, which has no UTF-8"
        raise RowError("half_surrogate", message) from None
    except RecursionError:
        raise RowError("malformed", f"{where}: nested too deeply") from None
    return Conversation(sample_id=sample_id, source=name, where=where, digest=digest, **vars(content))


def _without_opening(content: Content) -> Content:
    """Make an assistant message at the very beginning context: it answers nothing, so no target would write it."""
    if not content.messages or content.messages[0]["role"] != "assistant":
        return content
    return replace(content, context=content.context | {0})


def _taken(rows: Iterator[PlacedRow], weight: float) -> Iterator[PlacedRow]:
    """Yield ceil(weight * n) of n rows, evenly spread and the first among them."""
    share = Fraction(repr(weight))  # the decimal that was written, so that 0.1 of 10 rows is one
    return (row for index, row in enumerate(rows) if ceil(index * share) < ceil((index + 1) * share))


def _rows(source: SourceConfig) -> Iterator[PlacedRow]:
    try:
        files = local_files(source) if is_local(source) else None
    except OSError as error:
        raise read_error(source.path, error, absent=DataError) from None
    if files is not None:
        for file in files:
            yield from file_rows(file)
    elif is_hub_id(source.path):
        yield from hub_rows(source)
    else:
        raise DataError(f"{source.path}: no such file or folder (a dataset on the Hub is written owner/name)")
