"""The data folder that speculators reads beside states: token ids, loss masks and lengths, and the draft vocabulary."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eaglepipe.errors import EaglepipeError
from eaglepipe.files.publish import published_folder
from eaglepipe.progress import ProgressLine
from eaglepipe.speculators_backend.states import CacheStates


def write_data_folder(states: CacheStates, folder: Path) -> None:
    """Write the dataset of a cache, row i of which is sample i, and its vocabulary as `d2t-D.npy` and `t2d-D.npy`.

    Raises:
        EaglepipeError: the folder exists.
    """
    from datasets import Dataset

    if folder.exists():
        raise EaglepipeError(f"{folder}: exists; name a new folder")

    def rows() -> Iterator[dict[str, Any]]:
        with ProgressLine("data", total=states.cache.num_samples, unit="samples") as progress:
            for number in range(states.cache.num_samples):
                ids = states.cache.read(number).input_ids.tolist()
                yield {"input_ids": ids, "loss_mask": states.loss_mask(number).int().tolist(), "seq_len": len(ids)}
                progress.update(1)

    vocab = states.cache.vocab
    with published_folder(folder) as temporary:
        dataset = Dataset.from_generator(rows, cache_dir=str(temporary / ".rows"), keep_in_memory=False)
        dataset.set_format(type="torch")  # speculators reads rows as tensors
        dataset.save_to_disk(str(temporary))
        selected = vocab.selected_token_ids.numpy()
        np.save(temporary / f"d2t-{vocab.size}.npy", selected - np.arange(vocab.size))
        np.save(temporary / f"t2d-{vocab.size}.npy", vocab.selected_token_mask.numpy())
