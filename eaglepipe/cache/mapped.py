"""An Arrow IPC file behind a read-only memory map that does not let its pages pile up in the process.

Pages of a map count as the process's memory until it gives them back; those given back stay in the page cache.
"""

import mmap
from pathlib import Path

import pyarrow as pa

RESIDENT_BYTES = 64 * 2**20


class MappedArrow:
    """`reader` gives zero-copy record batches; views of them stay valid for as long as they are held."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.reader: pa.RecordBatchFileReader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        self._touched_bytes = 0

    def touched(self, num_bytes: int) -> None:
        """Say that so many more bytes were looked at; from time to time the pages go back to the system."""
        self._touched_bytes += num_bytes
        if self._touched_bytes > RESIDENT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched_bytes = 0
