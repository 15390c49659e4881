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

    def check_size(self) -> None:
        """Check before a read that the file was not cut meanwhile: pages past its end are a bus error.

        Raises:
            OSError: the file is shorter than it was when it was mapped.
        """
        if self._map.size() < len(self._map):
            raise OSError(f"cut to {self._map.size():,} bytes while it was read, from {len(self._map):,}")

    def copies(self, batch: pa.RecordBatch) -> bool:
        """Return whether reading copied the batch's data, as happens if a file is compressed."""
        whole = pa.py_buffer(self._map)
        data = batch.column(0).buffers()[1]
        return not whole.address <= data.address < whole.address + whole.size

    def touched(self, num_bytes: int) -> None:
        """Count bytes that were read; from time to time the pages go back to the system."""
        self._touched_bytes += num_bytes
        if self._touched_bytes > RESIDENT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched_bytes = 0
