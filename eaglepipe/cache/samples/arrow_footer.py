"""Places of the record batches in an Arrow IPC file, read from its footer: pyarrow does not tell them.

The footer is a FlatBuffers table (format/File.fbs of Apache Arrow), followed by its length and the magic.
"""

import struct

import numpy as np

_MAGIC = b"ARROW1"
TAIL_BYTES = 4 + len(_MAGIC)
_RECORD_BATCHES = 3  # field of the table
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])


def footer_bytes(tail: bytes) -> int:
    """Return the length of a file's footer, tail included, from its last `TAIL_BYTES`.

    Raises:
        ValueError: not the end of an Arrow file.
    """
    length, magic = struct.unpack("<i6s", tail[-TAIL_BYTES:])
    if magic != _MAGIC or length <= 0:
        raise ValueError("not the end of an Arrow file")
    return int(length) + TAIL_BYTES


def batch_places(footer: bytes, file_bytes: int) -> list[tuple[int, int]]:
    """Return the first and the last byte, exclusive, of each record batch of a file with this footer, tail included.

    Raises:
        ValueError: a footer that cannot be of such a file.
    """
    try:
        (table,) = struct.unpack_from("<I", footer)
        (back,) = struct.unpack_from("<i", footer, table)
        (field,) = struct.unpack_from("<H", footer, table - back + 4 + 2 * _RECORD_BATCHES)
        if field == 0:
            return []
        (forward,) = struct.unpack_from("<I", footer, table + field)
        vector = table + field + forward
        (count,) = struct.unpack_from("<I", footer, vector)
        blocks = np.frombuffer(footer, _BLOCK, count, vector + 4)
    except struct.error as error:
        raise ValueError(f"not the footer of an Arrow file ({error})") from None
    starts = blocks["offset"].tolist()
    stops = (blocks["offset"] + blocks["metadata"] + blocks["body"]).tolist()
    places = list(zip(starts, stops, strict=True))
    if any(not 0 <= start < stop <= file_bytes for start, stop in places):
        raise ValueError("its record batches are out of the file")
    return places
