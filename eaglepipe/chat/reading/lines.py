"""Lines of a stream, of which each is as long as a row may be: a file's longest line decides no memory."""

from collections.abc import Iterator
from typing import IO

from eaglepipe.errors import DataError

ROW_BYTES = 16 * 2**20
"""Most bytes of a row; its text and token ids need about 80 times as much memory while it is tokenised."""

TOO_LARGE = f"larger than {ROW_BYTES >> 20} MiB, the most that a row may have"
_SKIPPED_BYTES = 2**30
_PART_BYTES = 2**20


def bounded_lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a stream; None for one that is too large, of which only a part is read at a time.

    Raises:
        DataError: a line without end, as compressed zeros give it.
    """
    while line := stream.readline(ROW_BYTES + 1):
        if len(line) <= ROW_BYTES:
            yield line
        else:
            _skip_rest(stream, line)
            yield None


def _skip_rest(stream: IO[bytes], part: bytes) -> None:
    skipped = 0
    while part and not part.endswith(b"\n"):
        part = stream.readline(_PART_BYTES)
        skipped += len(part)
        if skipped > _SKIPPED_BYTES:
            raise DataError(f"a line of more than {_SKIPPED_BYTES >> 30} GiB; write one row a line")
