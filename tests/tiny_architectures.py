"""One tiny config for every architecture that a draft is registered for, each with what sets it apart switched on."""

from typing import Any

import transformers as hf

VOCAB, HIDDEN, LAYERS = 60, 32, 7
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE_HEADS = {**SHAPE, "head_dim": 16}  # heads · head_dim is not the hidden size
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOW = {"sliding_window": 6}  # shorter than the samples
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
}
TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}

CONFIGS: dict[str, hf.PretrainedConfig] = {
    "LlamaForCausalLM": hf.LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, attention_bias=True, mlp_bias=True),
    "Phi3ForCausalLM": hf.Phi3Config(
        **SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    "Qwen2ForCausalLM": hf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "Qwen3ForCausalLM": hf.Qwen3Config(**WIDE_HEADS),
    "Qwen3MoeForCausalLM": hf.Qwen3MoeConfig(**WIDE_HEADS, **EXPERTS, num_experts=4),
    "MistralForCausalLM": hf.MistralConfig(**SHAPE, **WINDOW),
    "Mistral3ForConditionalGeneration": hf.Mistral3Config(
        text_config=hf.MistralConfig(**WIDE_HEADS), vision_config=hf.PixtralVisionConfig(**VISION)
    ),
    "MixtralForCausalLM": hf.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "Gemma2ForCausalLM": hf.Gemma2Config(
        **WIDE_HEADS, **WINDOW, final_logit_softcapping=0.8, attn_logit_softcapping=5.0, query_pre_attn_scalar=24
    ),
    "Gemma3ForCausalLM": hf.Gemma3TextConfig(
        **WIDE_HEADS, **WINDOW, rope_parameters=TWO_ROPES, query_pre_attn_scalar=24, final_logit_softcapping=0.8
    ),
    "Gemma3ForConditionalGeneration": hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**WIDE_HEADS, **WINDOW, rope_parameters=TWO_ROPES),
        vision_config=hf.SiglipVisionConfig(**VISION),
    ),
    "Olmo2ForCausalLM": hf.Olmo2Config(**SHAPE),
    "Olmo3ForCausalLM": hf.Olmo3Config(
        **SHAPE, **WINDOW, rope_parameters={"sliding_attention": TWO_ROPES["sliding_attention"], "full_attention": YARN}
    ),
    "GraniteForCausalLM": hf.GraniteConfig(
        **SHAPE, logits_scaling=4.0, embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2
    ),
    "SmolLM3ForCausalLM": hf.SmolLM3Config(**SHAPE, no_rope_layer_interval=3),
    "Llama4ForCausalLM": hf.Llama4TextConfig(
        **WIDE_HEADS, num_local_experts=2, intermediate_size_mlp=40, interleave_moe_layer_step=2, attention_chunk_size=5
    ),
    "Llama4ForConditionalGeneration": hf.Llama4Config(
        text_config=hf.Llama4TextConfig(**WIDE_HEADS, num_local_experts=2, attention_chunk_size=5),
        vision_config=hf.Llama4VisionConfig(**VISION, vision_output_dim=16, projector_output_dim=16),
    ),
    "DeepseekV3ForCausalLM": hf.DeepseekV3Config(
        **{**SHAPE, **MLA},
        **EXPERTS,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=2,
        n_shared_experts=1,
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "GptOssForCausalLM": hf.GptOssConfig(
        **WIDE_HEADS,
        **WINDOW,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    ),
}
