"""Samples of SpecForge's `prepare_hidden_states.py`: a `.ckpt` file of `torch.save` each, maybe gzipped.

Layout as its sources document it; it is on no package index. A file has `input_ids` [T], `loss_mask` [T],
`aux_hidden_state` [1, T, A·Ht], the outputs of its aux layers in ascending order, and `hidden_state` [1, T, Ht], the
input of the lm_head, after the final norm. Its default layers are the boundaries [2, n//2, n-3] here; layer ids in its
settings count outputs, which are one less.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.chat.faults import RowError
from eaglepipe.errors import DataError
from eaglepipe.precompute.imported.reading import (
    check_folder,
    numbers,
    read_pickled,
    relative_id,
    walk_files,
    without_leading_ones,
)
from eaglepipe.precompute.imported.sample import ForeignSample, LastHidden

_SUFFIXES = (".ckpt", ".ckpt.gz")


class SpecForgeFolder:
    """A folder of `.ckpt` files at any depth."""

    last_hidden: LastHidden | None = "after_norm"
    selected_token_ids: tuple[int, ...] | None = None
    mask_advice = "every release stores one"

    def __init__(self, path: Path) -> None:
        """Raises DataError if there are no samples."""
        check_folder(path)
        self.root = path
        if next(walk_files(path, _SUFFIXES), None) is None:
            raise DataError(f"{path}: no .ckpt file in it")

    def check(self, spec: ShardSpec) -> None:
        """Accept all columns: the folder does not tell its layers, and each sample is checked."""

    def sample_ids(self) -> Iterator[str]:
        return (relative_id(self.root, path, _SUFFIXES[::-1]) for path in walk_files(self.root, _SUFFIXES))

    def where(self, sample_id: str) -> str:
        return self._file(sample_id).relative_to(self.root).as_posix()

    def read(self, sample_id: str) -> ForeignSample:
        where = self.where(sample_id)
        stored = read_pickled(self.root / where, where, ("input_ids", "hidden_state", "aux_hidden_state"))
        return flat_sample(where, stored, last_hidden="hidden_state", aux="aux_hidden_state")

    def _file(self, sample_id: str) -> Path:
        plain, packed = (self.root / f"{sample_id}{suffix}" for suffix in _SUFFIXES)
        return plain if plain.exists() else packed


def flat_sample(
    where: str, stored: dict[str, Any], *, last_hidden: str, aux: str, stated: LastHidden | None = None
) -> ForeignSample:
    """Return the sample of a file whose aux layers lie side by side in one dimension.

    Args:
        last_hidden, aux: names of the tensors.

    Raises:
        RowError: a tensor of another kind or shape.
    """
    input_ids = without_leading_ones(numbers(where, "input_ids", stored["input_ids"], kind="int"), 1)
    last = without_leading_ones(numbers(where, last_hidden, stored[last_hidden], kind="float"), 2)
    layers = without_leading_ones(numbers(where, aux, stored[aux], kind="float"), 2)
    width = last.shape[-1] if last.dim() == 2 else 0
    if not width or layers.dim() != 2 or layers.shape[1] == 0 or layers.shape[1] % width:
        shapes = f"{last_hidden} {list(last.shape)} and {aux} {list(layers.shape)}"
        raise RowError("wrong_shape", f"{where}: {shapes}, expected [T, Ht] and [T, A·Ht]")
    mask = stored.get("loss_mask")
    return ForeignSample(
        input_ids=input_ids,
        loss_mask=None if mask is None else without_leading_ones(numbers(where, "loss_mask", mask, kind="mask"), 1),
        aux=layers.unflatten(1, (-1, width)),
        last_hidden=last,
        stated=stated,
    )


def is_true(value: object) -> bool:
    """Return a flag of a file, stored as a bool or as a tensor of one number."""
    return bool(value.any()) if isinstance(value, torch.Tensor) else bool(value)
