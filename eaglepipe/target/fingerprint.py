"""The fingerprint of a target's weights, whatever their files are called: one hash over all tensors.

Single-file and sharded copies of the same weights have the same fingerprint.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from eaglepipe.errors import CorruptError, TargetError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.system_errors import check_readable
from eaglepipe.files.tensors import INDEX_FILE, SINGLE_FILE, pickled_files, weight_files

GGUF_ORIGIN = "gguf.json"  # in a folder of dequantised weights: which file they come from


def target_weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that transformers would load from a model folder, sorted.

    Raises:
        TargetError: none there, or one named by the index is missing.
    """
    try:
        files = weight_files(folder)
    except CorruptError as error:
        raise TargetError(str(error)) from None
    if files:
        return files
    pickled = pickled_files(folder)
    if not pickled:
        raise TargetError(f"{folder}: no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")
    raise TargetError(
        f"{folder}: only pickled weights ({', '.join(pickled[:3])}), which may run code when read; convert them "
        "once in a place you trust: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
    )


def open_weights(path: Path) -> Any:
    """Open a safetensors file, a context manager whose tensors are read one at a time.

    Raises:
        TargetError: not a safetensors file, or a truncated one.
    """
    check_readable(path, absent=TargetError)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TargetError(f"{path}: not a safetensors file, or a truncated one ({error}); fetch it again") from None


def weights_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a target's weights: that of their tensors, or of the GGUF file that they come from.

    Raises:
        TargetError: as `tensors_fingerprint`; or dequantised weights that are not those of their GGUF file.
    """
    tensors, origin = tensors_fingerprint(folder), folder / GGUF_ORIGIN
    if not origin.is_file():
        return tensors
    fields = read_json_object(origin)
    if fields.get("tensors") != tensors or not isinstance(fields.get("xxh3_128"), str):
        raise TargetError(
            f"{folder}: its weights are not those that {fields.get('file')} was dequantised into; delete the folder, "
            "and it is made again"
        )
    return str(fields["xxh3_128"])


def tensors_fingerprint(folder: Path) -> str:
    """Hash name, dtype, shape and bytes of every tensor, in the order of their names: xxh3_128, hex.

    Raises:
        TargetError: weights that are missing, truncated, or not in safetensors files.
    """
    digest = xxhash.xxh3_128()
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in target_weight_files(folder):
            file = stack.enter_context(open_weights(path))
            if repeated := sorted(files.keys() & set(file.keys())):
                raise TargetError(f"{path}: tensor {repeated[0]} is in another file of this folder, too")
            files |= dict.fromkeys(file.keys(), file)
        for name in sorted(files):
            with explained_library_errors(TargetError, f"{folder}: tensor {name!r} cannot be read"):
                stored = files[name].get_slice(name)
                digest.update(json.dumps([name, stored.get_dtype(), stored.get_shape()]).encode())
                digest.update(files[name].get_tensor(name).reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
