"""Rows of files and Hub datasets, one at a time, each with its location: JSON lines, JSON, parquet, Arrow.

At most one row, or one record batch, is held; a row that is larger than any conversation is a faulty one.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaglepipe.chat.faults import RowError
from eaglepipe.chat.layouts.stored import without_nulls
from eaglepipe.chat.reading.documents import DocumentError, document_values
from eaglepipe.chat.reading.lines import ROW_BYTES, TOO_LARGE, bounded_lines
from eaglepipe.errors import DataError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.hub.fetch import Repository, from_hub
from eaglepipe.recipe.config import SourceConfig

PlacedRow = tuple[str, dict[str, Any] | RowError]
"""The place of a row, and the row, or the reason that it is none."""

_BOM = b"\xef\xbb\xbf"
_LFS_POINTER = b"version https://git-lfs"
_BATCH_ROWS = 256
_COMPRESSIONS = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
_PLAIN_STARTS = (b"", b"{", b"[", b" ", b"\n", b"\r", b"\t", _BOM[:1])


def data_suffix(path: Path) -> str | None:
    """Return the suffix of a file that can be read, that of its compression left out, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        return suffixes[0] if len(suffixes) == 2 and suffixes[0] in _TEXT_READERS else None
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def stem(path: Path) -> str:
    """Return the name of a data file without its suffixes."""
    return Path(path.stem).stem if path.suffix.lower() in _COMPRESSIONS else path.stem


def file_rows(path: Path) -> Iterator[PlacedRow]:
    """Yield ("path:line" or "path row n", row) of one file, in order; of a row that is none, its RowError.

    Raises:
        DataError: the file cannot be read; the message begins with its path.
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    try:
        with explained_read_errors(path, absent=DataError):
            with path.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise DataError(f"{path}: the pointer of a file in Git LFS, not the file; run `git lfs pull`")
            yield from READERS[data_suffix(path) or ""](path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def hub_rows(source: SourceConfig) -> Iterator[PlacedRow]:
    """Yield ("owner/name[split] row n", row) of a dataset on the Hub, which is downloaded once and then mapped.

    Raises:
        DataError: no such dataset, config, split or revision, or one that the Hub refuses.
        UnreachableError: the Hub does not answer, and there is no earlier download.
    """
    import datasets  # slow to import, and only needed here

    name = f"dataset {source.path!r} (no such file or folder here)"
    dataset = from_hub(
        Repository(name=name, revision=source.revision, error=DataError),
        partial(datasets.load_dataset, source.path, source.config, split=source.split, revision=source.revision),
        also=(datasets.exceptions.DatasetsError,),
    )
    tables = dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    yield from batch_rows(tables, f"{source.path}[{source.split}]")


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    with _open_text(path) as file:
        for number, line in enumerate(_named_lines(file, path), start=1):
            where = f"{path}:{number}"
            if line is None:
                yield where, _too_large(where)
                continue
            content = line.removeprefix(_BOM) if number == 1 else line
            if content.strip():
                yield where, _object(content, where)


def _named_lines(file: IO[bytes], path: Path) -> Iterator[bytes | None]:
    try:
        yield from bounded_lines(file)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _too_large(where: str) -> RowError:
    return RowError("too_large", f"{where}: {TOO_LARGE}")


@contextmanager
def _open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if its first bytes are those of a compression, whatever its name."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        for name, magic in _COMPRESSIONS.values():
            if start.startswith(magic):
                with pa.CompressedInputStream(pa.PythonFile(file, "r"), name) as stream:
                    yield io.BufferedReader(stream)
                return
        if path.suffix.lower() in _COMPRESSIONS and start[:1] not in _PLAIN_STARTS:
            raise DataError(f"{path}: neither {_COMPRESSIONS[path.suffix.lower()][0]} nor JSON")
        yield file


def _object(line: bytes, where: str) -> dict[str, Any] | RowError:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError("not_json", f"{where}: not UTF-8: {error.reason} at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RowError("not_json", f"{where}: not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return RowError("not_json", f"{where}: not JSON that can be read: {error}")
    return _checked(row, where)


def _checked(row: Any, where: str) -> dict[str, Any] | RowError:
    if isinstance(row, dict):
        return row
    return RowError("unknown_layout", f"{where}: each row is a JSON object, this is a {type(row).__name__}")


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    """Rows of one JSON array, or objects written one after another."""
    try:
        with _open_text(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            for number, (row, size) in enumerate(document_values(text), start=1):
                where = f"{path} row {number}"
                yield where, _too_large(where) if size > ROW_BYTES else _checked(row, where)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}") from None
    except DocumentError as error:
        raise DataError(f"{path}:{error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(_BATCH_ROWS, ROW_BYTES // max(1, largest)))
        yield from batch_rows(file.iter_batches(batch_size=rows), str(path))


def _arrow_rows(path: Path) -> Iterator[PlacedRow]:
    with pa.OSFile(str(path)) as source:  # not mapped: a file cut meanwhile would be a bus error
        try:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = pa.ipc.open_stream(source)
        yield from batch_rows(batches, str(path))


def batch_rows(batches: Iterator[Any], place: str) -> Iterator[PlacedRow]:
    """Yield ("place row n", row) of record batches or tables; of nested objects, without the keys that are null."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in _python_rows(batch.slice(start, _BATCH_ROWS)):
                number += 1
                where = f"{place} row {number}"
                yield where, _too_large(where) if row is None else {k: without_nulls(v) for k, v in row.items()}


def _python_rows(rows: Any) -> Iterator[dict[str, Any] | None]:
    """Yield rows of a batch or a table; None for one that is too large, before Python holds it."""
    if _num_bytes(rows) <= ROW_BYTES:
        yield from rows.to_pylist(maps_as_pydicts="lossy")
        return
    for number in range(rows.num_rows):
        row = rows.slice(number, 1)
        yield None if _num_bytes(row) > ROW_BYTES else row.to_pylist(maps_as_pydicts="lossy")[0]


def _num_bytes(rows: Any) -> int:
    """Return the bytes of rows, dictionaries of their columns left out: any number of rows may share one."""
    return sum(column.nbytes for column in rows.columns if not pa.types.is_dictionary(column.type))


_TEXT_READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
}
READERS = {**_TEXT_READERS, ".parquet": _parquet_rows, ".arrow": _arrow_rows}
KINDS = f"{', '.join(READERS)} (JSON also with .gz or .zst)"
