"""The header of a GGUF file: its metadata without the long arrays, and the table of its tensors.

Read here, as the package `gguf` takes seconds for it and its errors on damaged files name nothing.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.errors import TargetError
from eaglepipe.files.system_errors import explained_read_errors

_AFTER_MAGIC = 4
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One entry of the table of tensors."""

    name: str
    shape: tuple[int, ...]  # fastest dimension first, as the file has it
    kind: int  # of ggml's types
    offset: int  # of its bytes, from the start of all tensors'

    @property
    def numel(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What stands before the tensors."""

    metadata: dict[str, Any]  # of an array, its length
    tensors: tuple[GgufTensor, ...]
    data_start: int  # first byte of the tensors

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def of_architecture(self, key: str) -> Any:
        """Return a value of the metadata whose key begins with the architecture's name; None if it is not there."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        TargetError: truncated or damaged inside its header, or of a version that nobody writes any more.
    """
    try:
        with (
            explained_read_errors(file, absent=TargetError),
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _Cursor(content).header(file)
    except (struct.error, IndexError, ValueError, OverflowError, RecursionError) as error:
        raise damaged(file, f"its header cannot be read ({error})") from None


def damaged(file: Path, reason: str) -> TargetError:
    """Return the error to raise for a GGUF file that is not whole."""
    return TargetError(f"{file}: cannot be read as a GGUF model: truncated or damaged: {reason}; fetch it again")


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, _AFTER_MAGIC

    def header(self, file: Path) -> GgufHeader:
        version = self._scalar("<I")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise TargetError(f"{file}: GGUF version {version}; versions {known} can be read: convert the model again")
        num_tensors, num_values = self._scalar("<Q"), self._scalar("<Q")
        metadata = {}
        for _ in range(num_values):
            key = self._text()
            metadata[key] = self._value(self._scalar("<I"))
        if not isinstance(metadata.get("general.architecture"), str):
            raise damaged(file, "its metadata has no general.architecture")
        tensors = tuple(self._tensor() for _ in range(num_tensors))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise damaged(file, f"general.alignment is {alignment!r}")
        return GgufHeader(metadata=metadata, tensors=tensors, data_start=-(-self._at // alignment) * alignment)

    def _tensor(self) -> GgufTensor:
        name, dimensions = self._text(), self._scalar("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise IndexError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))
        return GgufTensor(name=name, shape=shape, kind=self._scalar("<I"), offset=self._scalar("<Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise IndexError(f"a value of unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _skip_array(self) -> int:
        kind, length = self._scalar("<I"), int(self._scalar("<Q"))
        if kind in _SCALARS:
            self._skip(struct.calcsize(_SCALARS[kind]) * length)
        else:
            for _ in range(length):
                if kind == _STRING:
                    self._skip(self._scalar("<Q"))
                else:
                    self._value(kind)
        return length

    def _text(self) -> str:
        length = self._scalar("<Q")
        start = self._at
        self._skip(length)
        return self._content[start : self._at].decode("utf-8", errors="strict")

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._content):
            raise IndexError("it ends before its header does")

    def _scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._content, self._at)
        self._at += struct.calcsize(layout)
        return value
