"""Tensors to and from safetensors files, alone or in a model folder: published atomically, refused if malformed."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from eaglepipe.errors import CorruptError, first_line
from eaglepipe.files.hashing import FileDigest, hash_file
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import published_file
from eaglepipe.files.system_errors import error_number, explained_read_errors

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHT_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Suffixes under which weights and optimizer states are pickled, which may run code when read."""
_LENGTH_BYTES = 8
_TYPE_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.int64: "I64"}
TensorReader = Callable[[torch.Tensor], torch.Tensor]
_MAX_HEADER_BYTES = 100_000_000  # as the format allows


def publish_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileDigest:
    """Write a safetensors file that is visible only when whole; returns its digest.

    The file is read back for the digest: the library writes it without passing its bytes on, and would hold all of
    them in memory a second time to return them.

    Raises:
        ResourceError: full disk.
    """
    with published_file(path) as pending:
        mode = pending.temporary.stat().st_mode  # safetensors leaves it readable by its owner alone
        stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(stored, pending.temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            number = error_number(error)  # only the message tells a full disk from a bad tensor
            raise error if number is None else OSError(number, str(error)) from error
        pending.temporary.chmod(mode)
        return FileDigest(bytes=pending.temporary.stat().st_size, xxh3_128=hash_file(pending.temporary))


def publish_tensor_stream(path: Path, tensors: Mapping[str, torch.Tensor], whole: TensorReader) -> FileDigest:
    """Write a safetensors file one tensor at a time, as `publish_tensors` does all at once.

    Args:
        tensors: of known shapes and dtypes.
        whole: returns a tensor's values, of which one is in memory at once; called in the order of `stream_order`.

    Raises:
        ResourceError: full disk.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in stream_order(tensors):
        tensor, start = tensors[name], end
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    written, size = xxhash.xxh3_128(), 0
    with published_file(path) as pending:
        for data in (len(text).to_bytes(_LENGTH_BYTES, "little"), text):
            size += pending.stream.write(data)
            written.update(data)
        for name in stream_order(tensors):
            values = whole(tensors[name]).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            size += pending.stream.write(values.data)
            written.update(values.data)
        return FileDigest(bytes=size, xxh3_128=written.hexdigest())


def stream_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names in the order in which they are written: wide types first, so that all are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Read the names.

        Raises:
            CorruptError: absent or malformed.
        """
        self._path, self._names = path, tuple(tensor_shapes(path))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return load_tensor(self._path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_tensors(path: Path, *, xxh3_128: str | None = None) -> dict[str, torch.Tensor]:
    """Load all tensors of a file, on the CPU; read and not mapped, since a mapped file that is cut is a bus error.

    Args:
        xxh3_128: digest that the bytes of the file must have.

    Raises:
        CorruptError: absent, malformed, or another file than that of the digest.
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    with explained_read_errors(path):
        data = path.read_bytes()
    if xxh3_128 not in (None, xxhash.xxh3_128_hexdigest(data)):
        raise CorruptError(f"{path}: its bytes do not match the checksum that they were published with")
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
            raise CorruptError(f"{path}: a pickle under the name of a safetensors file; it is never read") from None
        if data.startswith(b"version https://git-lfs"):
            raise CorruptError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull`") from None
        raise CorruptError(f"{path}: not a readable safetensors file: {first_line(error)}") from None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors from its header alone.

    Raises:
        CorruptError: absent or malformed.
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    with explained_read_errors(path), path.open("rb") as stream:
        header, _ = _read_header(path, stream)
    try:
        return {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptError(f"{path}: not a safetensors file: {first_line(error)}") from None


def load_tensor(path: Path, name: str) -> torch.Tensor:
    """Load one tensor of a file, on the CPU, and read no more of the file than it holds.

    Raises:
        CorruptError: absent, malformed, or without that tensor.
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    with explained_read_errors(path), path.open("rb") as stream:
        header, first = _read_header(path, stream)
        try:
            start, end = map(int, header[name]["data_offsets"])
            alone = json.dumps({name: {**header[name], "data_offsets": [0, end - start]}}).encode()
            stream.seek(first + start)
            data = stream.read(end - start)
            return load(len(alone).to_bytes(_LENGTH_BYTES, "little") + alone + data)[name]
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise CorruptError(f"{path}: {name} cannot be read: {first_line(error)}") from None


def _read_header(path: Path, stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header of an open file, and where its tensors' bytes begin."""
    declared = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    text = stream.read(min(declared, _MAX_HEADER_BYTES))
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: not a safetensors file: {first_line(error)}") from None
    if not isinstance(header, dict):
        raise CorruptError(f"{path}: not a safetensors file: its header is no object")
    return header, _LENGTH_BYTES + declared


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder, one or sharded, sorted; empty if there are none.

    Raises:
        CorruptError: the index is malformed, or names a file that is not in the folder.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        return []
    weight_map = read_json_object(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
        raise CorruptError(f"{index}: not an index of safetensors files")
    names = sorted(set(weight_map.values()))
    if foreign := [name for name in names if Path(name).name != name]:
        raise CorruptError(f"{index}: {foreign[0]!r} is not the name of a file in this folder")
    with explained_read_errors(index):  # a name may be too long
        missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CorruptError(f"{folder}: weights missing: {', '.join(missing)} (named by {INDEX_FILE})")
    return [folder / name for name in names]


def pickled_files(folder: Path) -> list[str]:
    """List the names of the files in a folder that are pickles by their suffix, sorted."""
    return sorted(path.name for path in folder.glob("*.*") if path.suffix.lower() in PICKLE_SUFFIXES)
