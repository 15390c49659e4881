"""What vLLM 0.32 says about its own model classes, by the names in a target's config.json."""

# ruff: noqa: SIM905 (a name a line would fill four screens)

WITHOUT_AUX_STATES = frozenset(
    """
    AXK1ForCausalLM AriaForConditionalGeneration BailingMoeForCausalLM BailingMoeV2ForCausalLM
    Blip2ForConditionalGeneration BloomForCausalLM ChatGLMForConditionalGeneration ChatGLMModel
    Cohere2ForCausalLM Cohere2VisionForConditionalGeneration CohereForCausalLM
    Cosmos3EdgeForConditionalGeneration DbrxForCausalLM DeciLMForCausalLM DiffusionGemmaForBlockDiffusion
    Dots3NoteForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5_VLMoeForConditionalGeneration Exaone4ForCausalLM
    ExaoneForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM FalconForCausalLM GPT2LMHeadModel
    GPTJForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3nForCausalLM
    Gemma3nForConditionalGeneration GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM
    Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration GlmOcrForConditionalGeneration
    Granite4VisionForConditionalGeneration GraniteMoeForCausalLM GraniteMoeSWAForCausalLM
    GraniteMoeSharedForCausalLM HYV3ForCausalLM HYV4ForCausalLM HrmTextForCausalLM HyperCLOVAXForCausalLM
    Idefics3ForConditionalGeneration InklingForCausalLM InklingForConditionalGeneration InternLM2ForCausalLM
    InternVLChatModel InternVLForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration LlavaOnevisionForConditionalGeneration LongcatFlashForCausalLM
    MixtralForCausalLM Molmo2ForConditionalGeneration MossTranscribeDiarizeForConditionalGeneration
    NemotronForCausalLM OPTForCausalLM OlmoeForCausalLM OrionForCausalLM PaddleOCRVLForConditionalGeneration
    PaliGemmaForConditionalGeneration PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM
    Phi3VForCausalLM Phi4MMForCausalLM PhiMoEForCausalLM QianfanOCRForConditionalGeneration Qwen2MoeForCausalLM
    Qwen2VLForConditionalGeneration SarvamMoEForCausalLM SmolVLMForConditionalGeneration SolarForCausalLM
    StableLmForCausalLM Step3TextForCausalLM Step3p5ForCausalLM Step3p7ForConditionalGeneration
    """.split()
)
"""Classes of vLLM that hand out no states of their layers (`SupportsEagle3`), all layers attention."""

RECURRENT_WITHOUT_AUX_STATES = frozenset(
    """
    BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM
    GraniteMoeHybridForCausalLM JambaForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM
    Lfm2VlForConditionalGeneration Mamba2ForCausalLM MambaForCausalLM OlmoHybridForCausalLM Qwen4ExpForCausalLM
    Zamba2ForCausalLM
    """.split()
)
"""Such classes whose layers keep a recurrent state."""

MULTI_HEAD_LATENT = frozenset(
    """
    axk1 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deepseek_v41 dots3_note glm4_moe_lite
    glm5_next glm5_next_text glm_moe_dsa hy_v4 kimi_k2 kimi_linear longcat_flash pangu_ultra_moe
    """.split()
)
"""Model types whose attention vLLM runs on latent keys and values, where a config has them."""
