"""An Arrow IPC file that is read into memory of its own, never mapped: a file cut meanwhile is an error, no bus error.

A record batch is read whole, or its buffers are read part by part as they are needed.
"""

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ReadBatch:
    """A record batch and its custom metadata, in memory of its own."""

    batch: pa.RecordBatch
    metadata: dict[str, str]
    body: "_Block"

    @property
    def is_compressed(self) -> bool:
        """Whether the data had to be unpacked, so that it does not lie in the bytes that were read."""
        return not self.body.holds(self.batch.column(0).buffers()[1])


class ArrowFile:
    """Record batches of a file, each read when it is asked for; for one thread at a time."""

    def __init__(self, path: Path, *, num_bytes: int | None = None) -> None:
        """Open a file; `num_bytes` of it, if something else follows."""
        self._source = _Source(path, num_bytes)
        self._reader: pa.RecordBatchFileReader = pa.ipc.open_file(pa.PythonFile(self._source, mode="r"))

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    @property
    def num_batches(self) -> int:
        return int(self._reader.num_record_batches)

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change: while both are the same, so are the bytes."""
        status = os.fstat(self._source.descriptor)
        return status.st_size, status.st_mtime_ns

    def read(self, number: int) -> ReadBatch:
        """Read a record batch whole.

        Raises:
            OSError: the file was cut since it was opened.
        """
        return self._read(number, whole=True)

    def read_columns(self, number: int) -> ReadBatch:
        """Read the description of a record batch; its buffers hold nothing until `read_part` fills them."""
        return self._read(number, whole=False)

    def read_part(self, read: ReadBatch, buffer: pa.Buffer, start: int, stop: int) -> None:
        """Read bytes `start` to `stop` of one of the buffers of a batch."""
        if not read.body.is_whole:
            first = buffer.address - read.body.address
            self._source.fill(read.body, first + start, first + stop)

    def _read(self, number: int, *, whole: bool) -> ReadBatch:
        self._source.expect_batch(whole=whole)
        read = self._reader.get_batch_with_custom_metadata(number)
        metadata = {key.decode(): value.decode() for key, value in (read.custom_metadata or {}).items()}
        return ReadBatch(batch=read.batch, metadata=metadata, body=self._source.last)


class _Block:
    """Memory for consecutive bytes of the file from `position` on."""

    def __init__(self, position: int, num_bytes: int) -> None:
        self.position, self.data = position, np.empty(num_bytes, np.uint8)
        self.address = self.data.ctypes.data
        self.is_whole = False

    def holds(self, buffer: pa.Buffer) -> bool:
        return bool(self.address <= buffer.address <= self.address + len(self.data))


class _Source:
    """The file object that Arrow reads from; the first block of a batch is its description, the last its data."""

    def __init__(self, path: Path, num_bytes: int | None) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size if num_bytes is None else num_bytes
        self.closed = False
        self._position = 0
        self._deferred = -1
        self.last = _Block(0, 0)

    def expect_batch(self, *, whole: bool) -> None:
        """Fill every block that is asked for from now on, or only the first."""
        self._deferred = -1 if whole else 1

    def read_buffer(self, num_bytes: int) -> NDArray[Any]:
        if num_bytes > self.size - self._position:
            raise OSError(f"{num_bytes:,} bytes are declared, and the file holds {self.size - self._position:,}")
        self.last = block = _Block(self._position, num_bytes)
        if self._deferred != 0:
            self.fill(block, 0, num_bytes)
            block.is_whole = True
        self._deferred -= self._deferred > 0
        self._position += num_bytes
        data = block.data.view()
        data.flags.writeable = False
        return data

    def fill(self, block: _Block, start: int, stop: int) -> None:
        view = block.data.data
        while start < stop:
            num_read = os.preadv(self.descriptor, [view[start:stop]], block.position + start)
            if num_read == 0:
                now = os.fstat(self.descriptor).st_size
                raise OSError(f"cut to {now:,} bytes while it was read, from {self.size:,}")
            start += num_read

    def read(self, num_bytes: int = -1) -> bytes:
        return bytes(self.read_buffer(self.size - self._position if num_bytes < 0 else num_bytes))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the file open for as long as this object lives."""
