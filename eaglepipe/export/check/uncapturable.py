"""Targets of which vLLM 0.32 captures no aux hidden states: classes of its registry without `SupportsEagle3`."""

UNCAPTURABLE = frozenset(
    {
        "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "BloomForCausalLM", "ChatGLMForConditionalGeneration",
        "ChatGLMModel", "Cohere2ForCausalLM", "CohereForCausalLM", "DbrxForCausalLM", "DeciLMForCausalLM",
        "Ernie4_5_MoeForCausalLM", "Exaone4ForCausalLM", "ExaoneForCausalLM", "ExaoneMoeForCausalLM",
        "FalconForCausalLM", "FalconH1ForCausalLM", "FalconMambaForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
        "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration",
        "GemmaForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "GraniteMoeForCausalLM",
        "GraniteMoeHybridForCausalLM", "GraniteMoeSharedForCausalLM", "InternLM2ForCausalLM", "JambaForCausalLM",
        "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "LongcatFlashForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM",
        "MixtralForCausalLM", "NemotronForCausalLM", "OPTForCausalLM", "OlmoeForCausalLM", "OrionForCausalLM",
        "Phi4MMForCausalLM", "PhiMoEForCausalLM", "Qwen2MoeForCausalLM", "SolarForCausalLM", "StableLmForCausalLM",
        "Step3TextForCausalLM", "Zamba2ForCausalLM",
    }
)  # fmt: skip
