"""The engines as data: one `Layout` holds how an engine wants a draft, and what its loader misreads or ignores.

Each value was read in a loader. No loader reports a violation, so exports are written by these rules and drafts of any
origin are checked against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Engine = Literal["vllm", "sglang", "speculators", "hf"]
"""`hf` is our own portable layout, which vLLM, SGLang and the original EAGLE code load."""
ENGINES: tuple[Engine, ...] = get_args(Engine)
Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one engine reads a draft. A family that it does not serve is absent from `Family.engine_architectures`."""

    engine: Engine
    serving: str
    """Command that serves the draft, a `string.Template`."""

    # The format of config.json
    writes_speculators_format: bool = False
    reads_speculators_format: bool = False
    also_accepts: frozenset[str] = frozenset()
    """Further values of `architectures` for a family that reads aux states."""
    reads_top_ids: bool = True
    """Whether it takes top-level aux layer ids, as boundaries."""
    reads_nested_ids: Literal["boundaries", "outputs"] | None
    """Meaning of the aux layer ids in `eagle_config`, if it reads them."""
    needs_draft_vocab_size: bool = False
    needs_norm_flags: bool = False
    """Whether flags that are absent are errors, not warnings."""
    needs_rope_parameters: bool = True
    """Whether the lack of the newer spelling of RoPE is an error, not a warning."""
    needs_rope_theta: bool = True
    """Whether it looks for the older spelling as well."""
    breaks_at_null_target_width: bool = False
    serves_norm_before_residual: bool = True
    serves_attention_bias: bool = True
    serves_sliding_window: bool = True
    serves_parallel_norms: bool = True
    """Whether fc_norm and norm_output reach a parallel draft."""

    # The tensors
    first_layer: Literal["midlayer", "layers.0"] = "midlayer"
    """Written name of the layer that reads aux states; without them it is layers.0 everywhere."""
    first_layer_reader: str | None = None
    """The reader, if there is one, that knows no other name of it."""
    deeper_norms: tuple[str, ...] = ("input_layernorm",)
    """Names under which the input norm of deeper layers is read."""
    embeddings: Literal["always", "own", "other width"]
    """When they are written; "own": unless they are the target's, "other width": others would not be read."""
    shares_head: Literal["whole vocabulary", "null size"] | None = None
    """When the target's head stands in for a missing lm_head."""
    has_fc_bias: bool = False
    """Whether its drafts of last hidden states have an fc.bias, which may be trained and must be there."""
    writes_fc_bias: bool = False
    """Whether an fc.bias is written for them, zeros if the draft has none."""
    reads_t2d: bool = False
    knows_aux_norms: bool = False
    """Whether aux_norm_low, aux_norm_mid and aux_norm_high are names of fc_norm."""
    is_strict: bool = False
    """Whether a loader adds `model.` to names, stops at unknown ones and drops unexpected biases."""
    other_weight_files: Severity | None = None
    """Severity of weights in anything but one model.safetensors."""
    unexpected: str
    """Fate of an unexpected tensor."""
    missing: str
    """Fate of a missing one."""


_VLLM_SERVING = (
    "vllm serve $target --speculative-config "
    '\'{"method": "$method", "model": "THIS_FOLDER", "num_speculative_tokens": $tokens$parallel}\''
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
        reads_speculators_format=True,
        also_accepts=frozenset(
            {"Eagle3LlamaForCausalLM", "PEagleDraftModel", "Eagle3Qwen3ForCausalLM", "LlamaForCausalLM"}
        ),
        reads_nested_ids="boundaries",
        needs_rope_parameters=False,
        breaks_at_null_target_width=True,
        embeddings="own",
        shares_head="whole vocabulary",
        is_strict=True,
        unexpected="vLLM's loader stops with a ValueError",
        missing="vLLM says nothing and serves initial values",
    ),
    "sglang": Layout(
        engine="sglang",
        serving=_SGLANG_SERVING,
        reads_top_ids=False,
        reads_nested_ids="outputs",
        needs_draft_vocab_size=True,
        serves_norm_before_residual=False,
        serves_attention_bias=False,
        serves_sliding_window=False,
        deeper_norms=("hidden_norm",),
        embeddings="other width",
        shares_head="null size",
        has_fc_bias=True,
        writes_fc_bias=True,
        knows_aux_norms=True,
        unexpected="SGLang ignores it without a word",
        missing="SGLang says nothing and serves initial values",
    ),
    "speculators": Layout(
        engine="speculators",
        serving=_VLLM_SERVING,
        writes_speculators_format=True,
        reads_speculators_format=True,
        reads_nested_ids=None,
        needs_rope_theta=False,
        serves_parallel_norms=False,
        first_layer="layers.0",
        first_layer_reader="speculators",
        embeddings="always",
        reads_t2d=True,
        other_weight_files="error",
        unexpected="speculators ignores it without a word",
        missing="speculators starts from random values",
    ),
    "hf": Layout(
        engine="hf",
        serving=_VLLM_SERVING,
        reads_nested_ids="outputs",
        needs_draft_vocab_size=True,
        needs_norm_flags=True,
        breaks_at_null_target_width=True,
        serves_norm_before_residual=False,
        serves_sliding_window=False,
        first_layer_reader="the EAGLE code",
        deeper_norms=("input_layernorm", "hidden_norm"),
        embeddings="always",
        writes_fc_bias=True,
        reads_t2d=True,
        is_strict=True,
        other_weight_files="warning",
        unexpected="no engine reads it, and vLLM's loader stops",
        missing="engines serve initial values without a word",
    ),
}
