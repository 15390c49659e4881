"""The tokenised corpus as one Arrow file, between reading conversations and running the target.

Memory stays at a few bytes a sample however long the corpus is. The file is a pure function of its samples.
"""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.chat.tokens import TokenSample, supervised_tokens
from eaglepipe.errors import CorruptError, DataError
from eaglepipe.files.publish import PendingFile, explained_os_errors
from eaglepipe.vocab import add_counts

_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "source")]
    + [pa.field(name, pa.list_(pa.int32()), nullable=False) for name in ("input_ids", "turns")]
)
_BATCH_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class StagedPrompt(TokenSample):
    """The prompt of a conversation's first answer, and all that its answers need, as JSON; no token is the assistant's.

    `conversation` has its `id`, the `number` of this answer, `messages`, `tools`, `context` and, for the layout,
    the most tokens that may `follow` the prompt and how many of them the target may write, `answer`.
    """

    conversation: str

    @property
    def fields(self) -> dict[str, Any]:
        """The conversation's fields."""
        fields: dict[str, Any] = json.loads(self.conversation)
        return fields


@dataclass(frozen=True, kw_only=True)
class StagedStates(TokenSample):
    """Tokens whose states another tool has stored."""

    digest: str  # of the whole sample as it was read, hex
    last_hidden: str  # whether its last hidden states are before or after the final norm; empty if it has none


_EXTRA_COLUMNS: dict[type[TokenSample], tuple[str, ...]] = {
    TokenSample: (),
    StagedPrompt: ("conversation",),
    StagedStates: ("digest", "last_hidden"),
}
_KINDS = {columns: kind for kind, columns in _EXTRA_COLUMNS.items()}


@dataclass(frozen=True, kw_only=True)
class StagedStatistics:
    """Counts over a staged corpus of N samples; repetitions of an earlier sample are not distinct."""

    num_tokens: NDArray[np.int32]  # [N]
    num_supervised: NDArray[np.int32]  # [N]
    distinct: NDArray[np.int64]  # sample numbers, ascending
    duplicates: NDArray[np.int64]  # numbers of samples that repeat one with their id and tokens
    conflicts: NDArray[np.int64]  # numbers of samples that have the id of an earlier one, and other tokens
    token_counts: NDArray[np.int64]  # [V] assistant tokens by id

    @property
    def num_distinct(self) -> int:
        return len(self.distinct)

    @property
    def total_tokens(self) -> int:
        """Tokens of the distinct samples."""
        return int(self.num_tokens[self.distinct].sum(dtype=np.int64))

    @property
    def total_supervised(self) -> int:
        """Supervised tokens of the distinct samples."""
        return int(self.num_supervised[self.distinct].sum(dtype=np.int64))


def write_staging(samples: Iterable[TokenSample], file: PendingFile, *, kind: type[TokenSample] = TokenSample) -> int:
    """Stream samples, all of one kind, into `file`, which is not published; returns their number."""
    extra = [pa.field(name, pa.string(), nullable=False) for name in _EXTRA_COLUMNS[kind]]
    num_samples, schema = 0, pa.schema([*_SCHEMA, *extra])
    with (
        explained_os_errors(file.path),
        pa.ipc.new_file(pa.PythonFile(file.stream, mode="w"), schema) as writer,
    ):
        rest = iter(samples)
        while group := list(islice(rest, _BATCH_SAMPLES)):
            num_samples += len(group)
            writer.write_batch(pa.RecordBatch.from_pylist([vars(sample) for sample in group], schema=schema))
    file.stream.flush()
    return num_samples


class StagedTokens:
    """Random access to a staged corpus."""

    def __init__(self, path: Path) -> None:
        self._file = ArrowFile(path)
        sizes = [self._file.read_columns(group).batch.num_rows for group in range(self._file.num_batches)]
        self._first = np.cumsum([0, *sizes])
        self._path = path
        self._digests: NDArray[np.uint64] | None = None  # [N] once all were read

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, sample: int) -> TokenSample:
        """Return a sample.

        Raises:
            CorruptError: it is not the one that `statistics` counted.
        """
        group = int(np.searchsorted(self._first, sample, side="right")) - 1
        try:
            token_sample = self._read_row(group, sample - int(self._first[group]))
            is_sound = self._digests is None or _digest(token_sample) == self._digests[sample]
        except (pa.ArrowException, OSError, ValueError):
            is_sound = False
        if not is_sound:
            raise CorruptError(
                f"{self._path}: sample {sample} is not as it was staged; run the same command again, and it tokenises "
                "the corpus again"
            )
        return token_sample

    def _read_row(self, group: int, row: int) -> TokenSample:
        """Read one row of a group, and no byte of its neighbours."""
        read = self._file.read_columns(group)
        for column in read.batch.columns:
            offsets = column.buffers()[1]
            self._file.read_part(read, offsets, 4 * row, 4 * row + 8)
            begin, end = np.frombuffer(offsets, np.int32)[row : row + 2].tolist()
            is_list = pa.types.is_list(column.type)
            values, width = (column.buffers()[3], 4) if is_list else (column.buffers()[2], 1)
            if not 0 <= begin <= end <= values.size // width:
                raise ValueError(f"a row lies in {begin}..{end} of {values.size // width}")
            self._file.read_part(read, values, width * begin, width * end)
        return _from_batch(read.batch, row)

    def lengths_of(self, sample_ids: set[str]) -> dict[str, int]:
        """Return the number of tokens of each of these samples, in one pass over the corpus."""
        found: dict[str, int] = {}
        for group in range(self._file.num_batches):
            batch = self._file.read(group).batch
            for row, sample_id in enumerate(batch.column("sample_id").to_pylist()):
                if sample_id in sample_ids:
                    found.setdefault(sample_id, len(batch.column("input_ids")[row]))
        return found

    def statistics(self, vocab_size: int) -> StagedStatistics:
        """One pass over the corpus, group by group.

        Raises:
            DataError: a token id is outside the target's vocabulary.
        """
        num_tokens, num_supervised = array("i"), array("i")
        id_hashes, content_hashes, digests = array("Q"), array("Q"), array("Q")
        counts = np.zeros(vocab_size, np.int64)
        for group in self._groups():
            for sample in group:
                num_of_sample, num_supervised_of_sample = count_tokens(sample)
                num_tokens.append(num_of_sample)
                num_supervised.append(num_supervised_of_sample)
                id_hashes.append(xxhash.xxh3_64_intdigest(sample.sample_id.encode()))
                content_hashes.append(xxhash.xxh3_64_intdigest(_content(sample)))
                digests.append(_digest(sample))
            _check_range(group, vocab_size)
            add_counts(counts, np.concatenate([sample.input_ids[sample.turns > 0] for sample in group]))
        distinct, duplicates, conflicts = _by_id(np.array(id_hashes, np.uint64), np.array(content_hashes, np.uint64))
        self._digests = np.array(digests, np.uint64)
        return StagedStatistics(
            num_tokens=np.array(num_tokens, np.int32),
            num_supervised=np.array(num_supervised, np.int32),
            distinct=distinct,
            duplicates=duplicates,
            conflicts=conflicts,
            token_counts=counts,
        )

    def _groups(self) -> Iterator[list[TokenSample]]:
        for group in range(self._file.num_batches):
            batch = self._file.read(group).batch
            yield [_from_batch(batch, row) for row in range(batch.num_rows)]


def count_tokens(sample: TokenSample) -> tuple[int, int]:
    """Return the tokens and supervised tokens of a sample; of a prompt, the most that they may be once answered."""
    if not isinstance(sample, StagedPrompt):
        return len(sample.input_ids), int(supervised_tokens(sample.turns).sum())
    fields = sample.fields
    return len(sample.input_ids) + fields["follow"], min(fields["answer"], fields["follow"])


def _content(sample: TokenSample) -> bytes:
    content = sample.input_ids.tobytes() + sample.turns.tobytes()
    extra = (getattr(sample, name) for name in _EXTRA_COLUMNS[type(sample)])
    return content + "\0".join(extra).encode()


def _digest(sample: TokenSample) -> int:
    return xxhash.xxh3_64_intdigest(f"{sample.sample_id}\0{sample.source}\0".encode() + _content(sample))


def _by_id(ids: NDArray[np.uint64], contents: NDArray[np.uint64]) -> tuple[NDArray[np.int64], ...]:
    """Return the numbers of the samples that are the first of their id, that repeat it, and that contradict it."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    is_first = np.zeros(len(ids), dtype=np.bool_)
    is_first[first] = True
    differs = contents != contents[first[inverse]]
    return np.flatnonzero(is_first), np.flatnonzero(~is_first & ~differs), np.flatnonzero(differs)


def _check_range(group: list[TokenSample], vocab_size: int) -> None:
    for sample in group:
        low, high = int(sample.input_ids.min()), int(sample.input_ids.max())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise DataError(
                f"sample {sample.sample_id!r}: token id {wrong} is outside the target's vocabulary of {vocab_size}"
            )


def _from_batch(batch: pa.RecordBatch, row: int) -> TokenSample:
    fields = {
        name: column[row].values.to_numpy() if pa.types.is_list(column.type) else column[row].as_py()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    return _KINDS[tuple(batch.schema.names[len(_SCHEMA) :])](**fields)
