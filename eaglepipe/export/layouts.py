"""The engines as data: one `Layout` holds the names and fields that an engine reads, misreads and ignores.

Each value was read in a loader. No loader reports a violation, so exports are written by these rules and drafts of any
origin are checked against them. To add an engine, add its name, its `Layout` and its `Family.engine_architectures`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Engine = Literal["vllm", "sglang", "speculators", "hf"]
"""`hf` is our own portable layout, which vLLM, SGLang and the original EAGLE code load."""
ENGINES: tuple[Engine, ...] = get_args(Engine)
Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one engine reads a draft; `Family.engine_architectures` names the families that it serves."""

    engine: Engine
    serving: str  # the command that serves the draft, a string.Template
    serving_blocks: str  # likewise, of a draft that guesses blocks

    # config.json
    writes_speculators_format: bool = False
    reads_speculators_format: bool = False
    also_accepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # further `architectures` by method
    qk_norm_architectures: tuple[str, ...] = ()  # of drafts that norm query and key heads, which another class serves
    reads_top_ids: bool = True  # aux layer ids at the top level, as boundaries
    reads_nested_ids: Literal["boundaries", "outputs"] | None = None  # meaning of those in `eagle_config`
    needs_draft_vocab_size: bool = False
    needs_norm_flags: bool = False  # absent flags are errors, not warnings
    needs_rope_theta: bool = False  # the older spelling of RoPE is an error if absent, not a warning
    needs_rope_parameters: bool = True  # the newer one is an error if absent, not a warning
    needs_target_width: bool = False  # a target_hidden_size of null is an error, not a warning
    reads_tied_embeddings: bool = True
    serves_norm_before_residual: bool = True
    serves_attention_bias: bool = True
    serves_sliding_window: bool = True
    serves_mixed_windows: bool = True  # layers with and without one in one draft
    serves_qk_norm: bool = True  # norms of query and key heads
    serves_other_width: bool = True  # drafts of another hidden size than the target's
    serves_parallel_norms: bool = True  # fc_norm and norm_output of parallel drafts

    # Tensors
    first_layer: Literal["midlayer", "layers.0"] = "midlayer"  # always layers.0 in drafts that read no aux states
    first_layer_reader: str | None = None  # a reader that knows no other name of it
    deeper_norms: tuple[str, ...] = ("input_layernorm",)  # names under which the input norm of deeper layers is read
    embeddings: Literal["always", "own", "other width"]  # when written; "own": if not the target's
    shares_head: Literal["whole vocabulary", "null size"] | None = None  # when the target's replaces a missing lm_head
    has_fc_bias: bool = False  # drafts that read no aux states have a bias, trained or zero
    writes_fc_bias: bool = False  # for them, zeros if there is none
    reads_t2d: bool = False
    reads_aux_norms: bool = False  # aux_norm_low, aux_norm_mid and aux_norm_high as names of fc_norm
    is_strict: bool = False  # adds `model.` to names, stops at unknown ones and drops unexpected biases
    other_weight_files: Severity | None = None  # of weights in anything but one model.safetensors


_VLLM_SERVING = (
    "vllm serve $target --speculative-config "
    '\'{"method": "$method", "model": "THIS_FOLDER", "num_speculative_tokens": $tokens$parallel}\''
)
_VLLM_BLOCKS = (
    "vllm serve $target --speculative-config "
    '\'{"method": "$method", "model": "THIS_FOLDER", "num_speculative_tokens": $tokens}\''
)
_SGLANG_BLOCKS = (
    "python -m sglang.launch_server --model-path $target --speculative-algorithm $algorithm "
    "--speculative-draft-model-path THIS_FOLDER --speculative-num-draft-tokens $slots"
)
_SGLANG_SERVING = (
    "python -m sglang.launch_server --model-path $target --speculative-algorithm $algorithm "
    "--speculative-draft-model-path THIS_FOLDER --speculative-num-steps $tokens --speculative-eagle-topk 1 "
    "--speculative-num-draft-tokens $slots"
)

LAYOUTS: Mapping[Engine, Layout] = {
    "vllm": Layout(
        engine="vllm",
        serving=_VLLM_SERVING,
        serving_blocks=_VLLM_BLOCKS,
        reads_speculators_format=True,
        also_accepts={
            "eagle": ("EagleLlamaForCausalLM",),
            "eagle3": (
                "Eagle3LlamaForCausalLM",
                "LlamaForCausalLM",
                "Eagle3Qwen2_5vlForCausalLM",
                "Eagle3Qwen3vlForCausalLM",
                "Eagle3MiniMaxM2ForCausalLM",
            ),
        },
        qk_norm_architectures=("Eagle3Qwen3ForCausalLM", "Qwen3ForCausalLM"),
        reads_nested_ids="boundaries",
        needs_rope_parameters=False,
        reads_tied_embeddings=False,
        serves_mixed_windows=False,
        needs_target_width=True,
        embeddings="own",
        shares_head="whole vocabulary",
        is_strict=True,
    ),
    "sglang": Layout(
        engine="sglang",
        serving=_SGLANG_SERVING,
        serving_blocks=_SGLANG_BLOCKS,
        reads_top_ids=False,
        reads_nested_ids="outputs",
        needs_draft_vocab_size=True,
        needs_rope_parameters=False,
        needs_target_width=True,
        serves_norm_before_residual=False,
        serves_attention_bias=False,
        serves_sliding_window=False,
        serves_qk_norm=False,
        deeper_norms=("hidden_norm",),
        embeddings="other width",
        shares_head="null size",
        has_fc_bias=True,
        writes_fc_bias=True,
        reads_aux_norms=True,
    ),
    "speculators": Layout(
        engine="speculators",
        serving=_VLLM_SERVING,
        serving_blocks=_VLLM_BLOCKS,
        writes_speculators_format=True,
        reads_speculators_format=True,
        serves_parallel_norms=False,
        serves_other_width=False,
        first_layer="layers.0",
        first_layer_reader="speculators",
        embeddings="always",
        reads_t2d=True,
        other_weight_files="error",
    ),
    "hf": Layout(
        engine="hf",
        serving=_VLLM_SERVING,
        serving_blocks=_VLLM_BLOCKS,
        reads_nested_ids="outputs",
        needs_draft_vocab_size=True,
        needs_norm_flags=True,
        needs_rope_theta=True,
        needs_target_width=True,
        serves_norm_before_residual=False,
        serves_attention_bias=False,
        serves_sliding_window=False,
        serves_qk_norm=False,
        first_layer_reader="the EAGLE code",
        deeper_norms=("input_layernorm", "hidden_norm"),
        embeddings="always",
        writes_fc_bias=True,
        reads_t2d=True,
        is_strict=True,
        other_weight_files="warning",
    ),
}
