"""What a target's weights are, whatever their files are called: one hash over all tensors, in constant memory.

Single-file and sharded copies of the same weights have the same fingerprint.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from eaglepipe.errors import CorruptError, TargetError
from eaglepipe.files.hashing import CHUNK_BYTES
from eaglepipe.files.tensors import INDEX_FILE, SINGLE_FILE, weight_files

_MAX_HEADER_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor's bytes lie: the half-open range [start, stop) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def target_weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that transformers would load from a model folder, sorted.

    Raises:
        TargetError: none there, or one named by the index is missing.
    """
    try:
        files = weight_files(folder)
    except CorruptError as error:
        raise TargetError(str(error)) from None
    if not files:
        raise TargetError(_no_weights(folder))
    return files


def weights_fingerprint(folder: Path) -> str:
    """xxh3_128 (hex) over name, dtype, shape and bytes of every tensor, in the order of their names.

    Raises:
        TargetError: weights that are missing, truncated, or not in safetensors files.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in target_weight_files(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise TargetError(f"{folder}: tensor {name} is in both {tensors[name].file.name} and {file.name}")
            tensors[name] = tensor
    digest = xxhash.xxh3_128()
    with ExitStack() as stack:
        streams = {file: stack.enter_context(file.open("rb")) for file in {tensor.file for tensor in tensors.values()}}
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            _hash_range(digest, streams[tensor.file], tensor)
    return digest.hexdigest()


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, their ranges checked against the file's size.

    Raises:
        TargetError: not a safetensors file, or a truncated one.
    """
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise TargetError(f"{file}: not a safetensors file, or a truncated one; fetch it again")
        try:
            header = json.loads(stream.read(header_bytes))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = {name: _stored(file, entry, 8 + header_bytes) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(f"{file}: unreadable safetensors header ({error!r}); fetch it again") from None
    end = max((tensor.stop for tensor in tensors.values()), default=8 + header_bytes)
    if end != file_bytes:
        raise TargetError(f"{file}: {file_bytes} bytes, its header promises {end}; fetch it again")
    return tensors


def _stored(file: Path, entry: dict[str, Any], data_start: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop:
        raise ValueError(f"data_offsets {start}, {stop}")
    shape = tuple(int(size) for size in entry["shape"])
    return StoredTensor(
        file=file, dtype=str(entry["dtype"]), shape=shape, start=data_start + start, stop=data_start + stop
    )


def _hash_range(digest: xxhash.xxh3_128, stream: BinaryIO, tensor: StoredTensor) -> None:
    stream.seek(tensor.start)
    left = tensor.stop - tensor.start
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise TargetError(f"{tensor.file}: shrank while it was read")
        digest.update(chunk)
        left -= len(chunk)


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in folder.glob(suffix))
    if pickled:
        return (
            f"{folder}: only pickled weights ({', '.join(pickled[:3])}), which may run code when read; convert them "
            "once in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
        )
    return f"{folder}: no weights: neither {SINGLE_FILE} nor {INDEX_FILE}"
