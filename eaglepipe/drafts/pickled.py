"""State dicts in `pytorch_model.bin`, read only if they hold nothing but tensors: a pickle may run code when read."""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.system_errors import check_readable

PICKLE_FILE = "pytorch_model.bin"
CONVERT = (
    "convert them once in a place you trust: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
)
_FAILURES = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError,
    AttributeError, IndexError, AssertionError, NotImplementedError, MemoryError, OverflowError,
)  # fmt: skip


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Load an archive of `torch.save` with a dict of tensors; what any other pickle asks for is never looked up.

    Raises:
        DraftError: a plain pickle, or one that asks for code.
        CorruptError: a damaged archive, or one that holds something else than tensors.
    """
    check_readable(path)
    if not zipfile.is_zipfile(path):
        raise DraftError(
            f"{path}: a plain pickle, which may run code when read, or damaged: not an archive of torch.save; {CONVERT}"
        )
    try:
        asked = get_unsafe_globals_in_checkpoint(path)
        loaded = None if asked else torch.load(path, map_location="cpu", weights_only=True)
    except _FAILURES:
        raise CorruptError(f"{path}: not a whole archive of torch.save with tensors alone; {CONVERT}") from None
    if asked:
        raise CorruptError(
            f"{path}: its pickle asks for {listed(sorted(asked))}, and nothing else is loaded than tensors; {CONVERT}"
        )
    if not isinstance(loaded, dict) or not loaded or not all(map(_is_whole, loaded.values())):
        raise CorruptError(f"{path}: a dict of whole tensors is expected, and nothing else is loaded; {CONVERT}")
    return {str(name): tensor for name, tensor in loaded.items()}


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _is_whole(value: object) -> bool:
    """Return whether a value is a dense tensor with storage for each of its elements."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
