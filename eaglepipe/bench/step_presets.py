"""The presets of `bench step`: shapes of drafts, and the workloads that they are trained on."""

from dataclasses import dataclass
from typing import Literal

from eaglepipe.bench.made_cache import TargetShape, chat_lengths
from eaglepipe.errors import ConfigError

CHAT_SPREAD = 0.8  # standard deviation of the logarithm of a conversation's length


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Samples, the bounds that they are packed by, and how many rows the plain reference pads to the longest."""

    name: str
    lengths: tuple[int, ...]
    assistant_share: float
    pack_length: int
    micro_batch_tokens: int
    reference_rows: int


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


_CPU_SHAPE = TargetShape(
    hidden_size=512,
    intermediate_size=1408,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=32_000,
    draft_vocab_size=8192,
)


def cpu_chat() -> StepPreset:
    """Conversations of a median of 180 tokens, up to 1,024, 55% of them the assistant's."""
    lengths = chat_lengths(8, median=180, spread=CHAT_SPREAD, longest=1024)
    chat = _workload("chat, 55% supervised", lengths, share=0.55, pack_length=4096, micro_batch_tokens=4096, rows=8)
    return StepPreset(name="cpu-chat", device="cpu", dtype="float32", shape=_CPU_SHAPE, workloads=(chat,))


def cpu_full() -> StepPreset:
    """Equal lengths, every token supervised, nothing padded: the reference at its best."""
    workloads = tuple(
        _workload(f"T = {length:,}, all supervised", (length,) * rows, pack_length=length, rows=rows)
        for length, rows in ((128, 4), (512, 1), (2048, 1))
    )
    return StepPreset(name="cpu-full", device="cpu", dtype="float32", shape=_CPU_SHAPE, workloads=workloads, rounds=2)


def llama_8b() -> StepPreset:
    """Llama-3.1-8B's shape, packed rows of 2,048."""
    return _cuda_preset("llama3.1-8b", intermediate_size=14_336, vocab_size=128_256)


def qwen3_8b() -> StepPreset:
    """Qwen3-8B's shape, packed rows of 2,048."""
    return _cuda_preset("qwen3-8b", intermediate_size=12_288, vocab_size=151_936)


def _cuda_preset(name: str, *, intermediate_size: int, vocab_size: int) -> StepPreset:
    shape = TargetShape(
        hidden_size=4096,
        intermediate_size=intermediate_size,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=vocab_size,
        draft_vocab_size=32_000,
    )
    lengths = chat_lengths(32, median=400, spread=CHAT_SPREAD, longest=2048)
    workloads = tuple(
        _workload(title, lengths, share=share, pack_length=2048, micro_batch_tokens=4096, rows=2)
        for title, share in (("packed 2,048, all supervised", 1.0), ("packed 2,048, 55% supervised", 0.55))
    )
    return StepPreset(name=name, device="cuda", dtype="bfloat16", shape=shape, workloads=workloads, rounds=5)


def _workload(
    name: str,
    lengths: tuple[int, ...],
    *,
    share: float = 1.0,
    pack_length: int,
    micro_batch_tokens: int | None = None,
    rows: int,
) -> Workload:
    return Workload(
        name=name,
        lengths=lengths,
        assistant_share=share,
        pack_length=pack_length,
        micro_batch_tokens=micro_batch_tokens or rows * pack_length,
        reference_rows=rows,
    )


STEP_PRESETS = {"cpu-chat": cpu_chat, "cpu-full": cpu_full, "llama3.1-8b": llama_8b, "qwen3-8b": qwen3_8b}


def find_step_preset(name: str) -> StepPreset:
    """Return a preset, or raise ConfigError for a name that is not in `STEP_PRESETS`."""
    if name not in STEP_PRESETS:
        raise ConfigError(f"no preset {name!r} of `bench step`; there are {', '.join(STEP_PRESETS)}")
    return STEP_PRESETS[name]()
