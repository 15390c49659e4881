"""Caches made from the tiny project for tests of what is made from caches, and a plain reader of their contents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.columns import RowSupervision, take_rows
from eaglepipe.cache.supervision.sparse import SparseSupervision
from eaglepipe.cache.types import CachedSample
from eaglepipe.precompute.stage import run_precompute
from tests.tiny_project import TinyProject

FEW = {
    "data.max_length": 80,
    "cache.shard_bytes": "60KiB",
    "cache.hidden_codec": "fp32",
    "precompute.batch_tokens": 256,
}


def few(project: TinyProject) -> dict[str, Any]:
    """Overrides for a small cache."""
    return {**FEW, "data.sources": json.dumps([{"path": str(path), "max_samples": 4} for path in project.sources[:2]])}


def make_cache(project: TinyProject, root: Path, **overrides: Any) -> Path:
    recipe = project.recipe(**{"cache.root": str(root), **overrides})
    return Path(run_precompute(recipe, report=lambda _: None).folder)


def digests(folder: Path) -> dict[str, str]:
    """Sample id -> digest, as the shards themselves say, read with pyarrow alone."""
    found = {}
    for path in sorted((folder / "shards").glob("*.arrow")):
        reader = pa.ipc.open_file(path.read_bytes())
        for number in range(reader.num_record_batches):
            metadata = reader.get_batch_with_custom_metadata(number).custom_metadata
            found[metadata[b"sample_id"].decode()] = metadata[b"xxh3_128"].decode()
    return found


def samples(folder: Path) -> dict[str, CachedSample]:
    cache = Cache.open(folder)
    return {sample.sample_id: sample for sample in (cache.read(number) for number in range(cache.num_samples))}


def aux_of(folder: Path) -> dict[str, torch.Tensor]:
    cache = Cache.open(folder)
    return {
        name: cache.spec.aux.decode(
            EncodedRows(
                payload=torch.from_numpy(np.copy(sample.aux_payload)),
                scales=None if sample.aux_scales is None else torch.from_numpy(np.copy(sample.aux_scales)),
            )
        )
        for name, sample in samples(folder).items()
    }


def rows_of(folder: Path) -> dict[str, torch.Tensor]:
    """Sample id -> the supervision rows that are stored, float32."""
    kind = Cache.open(folder).spec.kind
    assert isinstance(kind, RowSupervision)
    return {
        name: kind.decode_rows(take_rows(sample.supervision, np.arange(sample.supervised.sum()))).float()
        for name, sample in samples(folder).items()
    }


def sparse_rows_of(sample: CachedSample) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Draft indices, probabilities and tail of each supervised token of a sample with sparse supervision."""
    kind = SparseSupervision.of("fp16", hidden_size=1, draft_vocab_size=1)
    return list(kind.decode(take_rows(sample.supervision, np.arange(sample.supervised.sum())), None).rows())
