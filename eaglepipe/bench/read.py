"""`bench read`: a cache through the loader of training, against a plain read of as many bytes into buffers as large.

Both find the shards in the page cache and their buffers in memory, as every epoch but the first steps of a run does.
The plain read goes through the shards in order, without asking what is in them.
"""

import itertools
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from eaglepipe.bench.made_cache import SHAPE_8B, TargetShape, chat_lengths, write_made_cache
from eaglepipe.bench.timing import median_seconds, timed
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.config import CacheConfig, Profile
from eaglepipe.tables import text_table
from eaglepipe.training.data.batch import DataPosition, EncodedBatch, PackingLimits
from eaglepipe.training.data.buffers import BufferPool
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.order import SampleOrder
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.objectives.eagle3 import draw_slots

_HOST = torch.device("cpu")
READ_SHAPE = replace(SHAPE_8B, intermediate_size=64, vocab_size=2048, draft_vocab_size=512)
"""Rows as wide as those of an 8B target; nothing else of it matters here."""


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """Medians of whole passes over a cache; `num_bytes` is what arrives in the batches of one pass."""

    samples: int
    tokens: int
    batches: int
    num_bytes: int
    seconds: float
    first_touch_seconds: float  # with every sample's digest checked, as in a first epoch
    raw_seconds: float
    rounds: int

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "bytes_per_s": self.num_bytes / self.seconds,
            "first_touch_bytes_per_s": self.num_bytes / self.first_touch_seconds,
            "raw_bytes_per_s": self.num_bytes / self.raw_seconds,
            "tokens_per_s": self.tokens / self.seconds,
            "ratio_to_raw": self.raw_seconds / self.seconds,
            "first_touch_ratio_to_raw": self.raw_seconds / self.first_touch_seconds,
        }

    def table(self) -> str:
        rows = [
            self._row("plain read of the same bytes", self.raw_seconds),
            self._row("into training batches", self.seconds),
            self._row("the same, every digest checked", self.first_touch_seconds),
        ]
        table = text_table({"": "left", "GB/s": "right", "of plain": "right", "tokens/s": "right"}, rows, indent=2)
        return (
            f"bench read: {self.samples:,} samples, {self.tokens:,} tokens, {self.num_bytes / 1e6:,.0f} MB into "
            f"{self.batches} batches, medians of {self.rounds} rounds\n{table}"
        )

    def _row(self, name: str, seconds: float) -> tuple[str, ...]:
        rate, share = self.num_bytes / seconds / 1e9, self.raw_seconds / seconds
        return name, f"{rate:.2f}", f"{share:.2f}", f"{self.tokens / seconds:,.0f}"


def measure_read(
    folder: Path | None = None,
    *,
    profile: str | None = None,
    shape: TargetShape = READ_SHAPE,
    num_samples: int = 96,
    rounds: int = 7,
) -> ReadReport:
    """Read a complete cache, or one made for it in a temporary folder.

    Args:
        profile: of the one that is made; default: exact.

    Raises:
        ConfigError: no such profile, or one for a cache that is there.
        CacheError, CorruptError: the cache cannot be read.
    """
    if folder is not None and profile is not None:
        raise ConfigError("--profile is for the cache that is made; leave it out to read one that is there")
    with _complete_cache(folder, shape, num_samples, profile or "exact") as cache_folder:
        cache = Cache.open(cache_folder)
        buffers = BufferPool()
        sizes = [sum(tensor.nbytes for tensor in batch.tensors()) for batch in _batches(cache, buffers)]
        files = [cache_folder / entry.path for entry in cache.manifest.shards]
        seconds = median_seconds(
            {
                "raw": lambda: _raw_seconds(files, sizes),
                "loader": lambda: _epoch_seconds(cache, buffers),
                "first touch": lambda: _epoch_seconds(Cache.open(cache_folder), buffers),
            },
            rounds,
        )
        return ReadReport(
            samples=cache.num_samples,
            tokens=int(cache.index.num_tokens.sum()),
            batches=len(sizes),
            num_bytes=sum(sizes),
            seconds=seconds["loader"],
            first_touch_seconds=seconds["first touch"],
            raw_seconds=seconds["raw"],
            rounds=rounds,
        )


@contextmanager
def _complete_cache(folder: Path | None, shape: TargetShape, num_samples: int, profile: str) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    known = next((name for name in get_args(Profile) if name == profile), None)
    if known is None:
        raise ConfigError(f"--profile {profile!r}: there are {', '.join(get_args(Profile))}")
    lengths = chat_lengths(num_samples, median=180, spread=0.8, longest=1024)
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as name:
        write_made_cache(Path(name), shape, lengths, assistant_share=0.55, settings=CacheConfig(profile=known))
        yield Path(name)


def _epoch_seconds(cache: Cache, buffers: BufferPool) -> float:
    return timed(lambda: deque(_batches(cache, buffers), maxlen=0), _HOST)[0]


def _batches(cache: Cache, buffers: BufferPool) -> Iterator[EncodedBatch]:
    """One epoch as training reads it, into buffers that epochs share; no batch is kept."""
    longest = int(cache.index.num_tokens.max())
    micro_batch_tokens = max(4096, longest)
    order = SampleOrder(
        samples=np.arange(cache.num_samples),
        num_tokens=cache.index.num_tokens,
        identity=cache.identity,
        seed=0,
        epochs=1,
        batch_tokens=max(16_384, longest),
    )
    limits = PackingLimits(pack_length=micro_batch_tokens, micro_batch_tokens=micro_batch_tokens)
    plans = plan_steps(order, order.num_tokens.astype(np.float64), limits=limits, start=DataPosition())
    with Loader(cache, plans, draw=draw_slots(7), device=_HOST, prefetch_batches=4, buffers=buffers) as loader:
        for _, batches in loader:
            yield from batches


def _raw_seconds(files: list[Path], sizes: list[int]) -> float:
    """Fill one buffer as often, and each time as far, as the batches ask for, from the files one after the other."""
    buffer = memoryview(bytearray(max(sizes)))
    buffer[:] = bytes(len(buffer))
    return timed(lambda: _read_into(buffer, files, sizes), _HOST)[0]


def _read_into(buffer: memoryview, files: list[Path], sizes: list[int]) -> None:
    with ExitStack() as opened:
        streams = itertools.cycle([opened.enter_context(path.open("rb", buffering=0)) for path in files])
        stream = next(streams)
        for size in sizes:
            filled = 0
            while filled < size:
                num_read = stream.readinto(buffer[filled:size])
                filled += num_read
                if not num_read:
                    stream = next(streams)
                    stream.seek(0)
