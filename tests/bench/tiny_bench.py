"""Shapes small enough for a test."""

from eaglepipe.bench.made_cache import TargetShape
from eaglepipe.bench.step_presets import StepPreset, Workload

SHAPE = TargetShape(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=60,
    draft_vocab_size=40,
)
CHAT = Workload(
    name="tiny chat",
    lengths=(33, 12, 20, 41),
    assistant_share=0.55,
    pack_length=48,
    micro_batch_tokens=96,
    reference_rows=2,
)
FULL = Workload(
    name="tiny, all supervised",
    lengths=(16, 16),
    assistant_share=1.0,
    pack_length=16,
    micro_batch_tokens=32,
    reference_rows=2,
)
PRESET = StepPreset(name="tiny", device="cpu", dtype="float32", shape=SHAPE, workloads=(CHAT,), ttt_steps=3, rounds=2)
