"""Samples of NVIDIA ModelOpt's `compute_hidden_states_*.py`: a `.pt` file of `torch.save` for each conversation.

Layout as its sources document it; its package holds the reader, not the writer. A file has `input_ids` [T],
`hidden_states` [T, Ht], after the final norm unless `hidden_states_prenorm` is true, `aux_hidden_states` [T, A·Ht] in
ascending order of layers, `conversation_id`, and with `--answer-only-loss` a `loss_mask` [T]. Its default layers are
the boundaries [2, n//2, n-3] here; ids in its settings count outputs, which are one less.
"""

from collections.abc import Iterator
from pathlib import Path

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.errors import DataError
from eaglepipe.precompute.imported.reading import check_folder, read_pickled, relative_id, walk_files
from eaglepipe.precompute.imported.sample import ForeignSample, LastHidden
from eaglepipe.precompute.imported.specforge import flat_sample, is_true

_SUFFIX = ".pt"
_PRENORM = "hidden_states_prenorm"


class ModelOptFolder:
    """A folder of `.pt` files at any depth."""

    last_hidden: LastHidden | None = "after_norm"
    selected_token_ids: tuple[int, ...] | None = None
    mask_advice = "compute_hidden_states_* stores one with --answer-only-loss"

    def __init__(self, path: Path) -> None:
        """Raises DataError if there are no samples."""
        check_folder(path)
        self.root = path
        if next(walk_files(path, (_SUFFIX,)), None) is None:
            raise DataError(f"{path}: no .pt file in it")

    def check(self, spec: ShardSpec) -> None:
        """Accept all columns: the folder does not tell its layers, and each sample is checked."""

    def sample_ids(self) -> Iterator[str]:
        return (relative_id(self.root, path, (_SUFFIX,)) for path in walk_files(self.root, (_SUFFIX,)))

    def where(self, sample_id: str) -> str:
        return f"{sample_id}{_SUFFIX}"

    def read(self, sample_id: str) -> ForeignSample:
        where = self.where(sample_id)
        stored = read_pickled(self.root / where, where, ("input_ids", "hidden_states", "aux_hidden_states"))
        stated: LastHidden | None = None
        if _PRENORM in stored:
            stated = "before_norm" if is_true(stored[_PRENORM]) else "after_norm"
        return flat_sample(where, stored, last_hidden="hidden_states", aux="aux_hidden_states", stated=stated)
