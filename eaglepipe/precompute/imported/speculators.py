"""Samples of speculators 0.9 (`hs_connectors`): the preprocessed dataset with token ids and loss masks, saved by
`datasets`, and beside it in `hidden_states/` a safetensors file for each of its rows.

`hs_{row}.safetensors` has `token_ids` [T] and `hidden_states` [T, A + 1, Ht]: the layers that vLLM was told to extract
in ascending order, which are boundaries, the last of them the output of the last layer, before the final norm. Written
by its FP8 connector, they are float8_e4m3fn with `hidden_states_scales` [T, 1, 1], and become bfloat16 as its own
reader makes them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.chat.faults import RowError
from eaglepipe.errors import DataError
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.precompute.imported.reading import check_folder, numbers, read_safetensors
from eaglepipe.precompute.imported.sample import ForeignSample, LastHidden, NoStatesError
from eaglepipe.progress import without_library_output

_STATES = "hidden_states"
_SCALES = "hidden_states_scales"
_FILE = re.compile(r"hs_(0|[1-9]\d{0,17})\.safetensors")


class SpeculatorsFolder:
    """A data folder of speculators, or the folder of its files of states, whose parent is the data folder then."""

    last_hidden: LastHidden | None = "before_norm"
    selected_token_ids: tuple[int, ...] | None = None
    mask_advice = "its preprocessed dataset has one"

    def __init__(self, path: Path) -> None:
        """Raises DataError if there are no states, or no dataset with them."""
        check_folder(path)
        self._states = path / _STATES if (path / _STATES).is_dir() else path
        with explained_read_errors(self._states):
            found = (_FILE.fullmatch(file.name) for file in self._states.iterdir())
            self._rows = {int(match[1]) for match in found if match is not None}
        if not self._rows:
            raise DataError(f"{path}: no hs_0.safetensors, hs_1.safetensors, … in it or in its {_STATES}/")
        self.root = path.resolve() if self._states != path else path.resolve().parent
        self._dataset = _open_dataset(self.root)
        self._count = max(len(self._dataset), max(self._rows) + 1)

    def check(self, spec: ShardSpec) -> None:
        """Accept all columns: the folder does not tell its layers, and each sample is checked."""

    def sample_ids(self) -> Iterator[str]:
        return (f"hs_{row}" for row in range(self._count) if row in self._rows or row < len(self._dataset))

    def where(self, sample_id: str) -> str:
        return f"{sample_id}.safetensors"

    def read(self, sample_id: str) -> ForeignSample:
        row, where = int(sample_id.removeprefix("hs_")), self.where(sample_id)
        if row not in self._rows:
            raise NoStatesError(f"{where}: not generated")
        if row >= len(self._dataset):
            raise RowError("other_tokens", f"{where}: the dataset beside it has {len(self._dataset):,} rows only")
        stored = read_safetensors(self._states / where, where, ("token_ids", _STATES), (_SCALES,))
        token_ids = numbers(where, "token_ids", stored["token_ids"], kind="int")
        expected = self._dataset[row]
        if not torch.equal(token_ids.long(), expected["input_ids"].long()):
            raise RowError("other_tokens", f"{where}: its token_ids are not the input_ids of row {row} of the dataset")
        states = _plain(where, stored)
        if states.dim() != 3 or states.shape[1] < 2:
            raise RowError("wrong_shape", f"{where}: {_STATES} has shape {list(states.shape)}, expected [T, A + 1, Ht]")
        return ForeignSample(
            input_ids=token_ids, loss_mask=expected["loss_mask"], aux=states[:, :-1], last_hidden=states[:, -1]
        )


def _plain(where: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    states = numbers(where, _STATES, stored[_STATES], kind="float")
    if states.element_size() > 1:
        return states
    if _SCALES not in stored:
        raise RowError("missing_field", f"{where}: {_STATES} is {states.dtype}, and {_SCALES} is missing")
    scales = numbers(where, _SCALES, stored[_SCALES], kind="float")
    if scales.shape != (len(states), *[1] * (states.dim() - 1)):
        raise RowError("wrong_shape", f"{where}: {_SCALES} has shape {list(scales.shape)}")
    return states.to(torch.bfloat16) * scales.to(torch.bfloat16)


def _open_dataset(path: Path) -> Any:
    from datasets import Dataset, load_from_disk

    if not (path / "dataset_info.json").is_file():
        raise DataError(
            f"{path}: lacks the preprocessed dataset of speculators (dataset_info.json), which has the loss masks; "
            "name the folder that `prepare_data` has written, with the files of states in its hidden_states/"
        )
    with without_library_output(), explained_library_errors(DataError, f"{path}: its dataset cannot be read"):
        dataset = load_from_disk(str(path))
        if not isinstance(dataset, Dataset):
            raise DataError(f"{path}: holds several datasets; name the folder of one")
        if missing := sorted({"input_ids", "loss_mask"} - set(dataset.column_names)):
            raise DataError(f"{path}: its dataset lacks {', '.join(missing)}; it has {', '.join(dataset.column_names)}")
        return dataset.select_columns(["input_ids", "loss_mask"]).with_format("torch")
