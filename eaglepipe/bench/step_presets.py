"""The presets of `bench step`: shapes of drafts, and the workloads that they are trained on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from eaglepipe.bench.made_cache import CPU_SHAPE, SHAPE_8B, TargetShape, chat_lengths, write_made_cache
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.config import CacheConfig

PRESET_NAMES = ("cpu-chat", "cpu-full", "cpu-sparse", "llama3.1-8b", "qwen3-8b")
CHAT_SPREAD = 0.8  # standard deviation of the logarithm of a conversation's length


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Samples, the bounds that they are packed by, and the rows that the plain reference pads to the longest."""

    name: str
    lengths: tuple[int, ...]
    assistant_share: float
    pack_length: int
    micro_batch_tokens: int
    reference_rows: int
    max_entries: int | None = None  # a row of sparse supervision; None: the cache stores last hidden states

    def write_cache(self, folder: Path, shape: TargetShape) -> Cache:
        """Write and open a cache of the samples, of a target of that shape."""
        sparse = {} if self.max_entries is None else {"supervision": "sparse", "max_entries": self.max_entries}
        settings = CacheConfig.model_validate({"profile": "exact", **sparse})
        return write_made_cache(folder, shape, self.lengths, assistant_share=self.assistant_share, settings=settings)


@dataclass(frozen=True, kw_only=True)
class StepPreset:
    """A draft of one layer in the shape of its target, K TTT steps, on the workloads."""

    name: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    shape: TargetShape
    workloads: tuple[Workload, ...]
    ttt_steps: int = 7
    rounds: int = 3

    @property
    def is_sparse(self) -> bool:
        """Whether a workload has sparse supervision, and no last hidden states."""
        return any(workload.max_entries is not None for workload in self.workloads)


def find_step_preset(name: str) -> StepPreset:
    """Return a preset, or raise ConfigError for a name that is not in `PRESET_NAMES`."""
    match name:
        case "cpu-chat":
            return _cpu_preset(name, (_chat_workload(),), rounds=3)
        case "cpu-full":
            full = tuple(_full_workload(length, rows) for length, rows in ((128, 4), (512, 1), (2048, 1)))
            return _cpu_preset(name, full, rounds=2)
        case "cpu-sparse":
            return _cpu_preset(name, tuple(_sparse_workload(cap) for cap in (256, 2048)), rounds=3)
        case "llama3.1-8b":
            return _cuda_preset(name, SHAPE_8B)
        case "qwen3-8b":
            return _cuda_preset(name, replace(SHAPE_8B, intermediate_size=12_288, vocab_size=151_936))
    raise ConfigError(f"no preset {name!r} of `bench step`; there are {', '.join(PRESET_NAMES)}")


def _chat_workload() -> Workload:
    """Conversations of a median of 180 tokens, up to 1,024, 55% of them the assistant's."""
    return Workload(
        name="chat, 55% supervised",
        lengths=chat_lengths(8, median=180, spread=CHAT_SPREAD, longest=1024),
        assistant_share=0.55,
        pack_length=4096,
        micro_batch_tokens=4096,
        reference_rows=8,
    )


def _sparse_workload(max_entries: int) -> Workload:
    """The same conversations; a few rows have as many entries as they may, most have far fewer."""
    chat = _chat_workload()
    return replace(chat, name=f"{chat.name}, sparse, {max_entries:,} entries at most", max_entries=max_entries)


def _full_workload(length: int, rows: int) -> Workload:
    """Equal lengths, every token supervised, nothing padded: the reference at its best."""
    return Workload(
        name=f"T = {length:,}, all supervised",
        lengths=(length,) * rows,
        assistant_share=1.0,
        pack_length=length,
        micro_batch_tokens=rows * length,
        reference_rows=rows,
    )


def _cpu_preset(name: str, workloads: tuple[Workload, ...], *, rounds: int) -> StepPreset:
    return StepPreset(name=name, device="cpu", dtype="float32", shape=CPU_SHAPE, workloads=workloads, rounds=rounds)


def _cuda_preset(name: str, shape: TargetShape) -> StepPreset:
    """Packed rows of 2,048."""
    lengths = chat_lengths(32, median=400, spread=CHAT_SPREAD, longest=2048)
    workloads = tuple(
        Workload(
            name=f"packed 2,048, {title} supervised",
            lengths=lengths,
            assistant_share=share,
            pack_length=2048,
            micro_batch_tokens=4096,
            reference_rows=2,
        )
        for title, share in (("all", 1.0), ("55%", 0.55))
    )
    return StepPreset(name=name, device="cuda", dtype="bfloat16", shape=shape, workloads=workloads, rounds=5)
