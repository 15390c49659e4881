"""The draft class for each target architecture; one line an architecture."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.dflash.dspark import DSparkDraftModel
from eaglepipe.eagle.draft_gpt_oss import GptOssEagle3DraftModel
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.draft_llama_v12 import LlamaEagleDraftModel
from eaglepipe.errors import DraftError


@dataclass(frozen=True)
class DraftSpec:
    """How to build an EAGLE draft model for a particular target architecture."""

    draft_cls: type[PreTrainedModel]


_DENSE_ARCHITECTURES: tuple[str, ...] = (
    "LlamaForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MistralForCausalLM",
    "Mistral3ForConditionalGeneration",
    "MixtralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "GraniteForCausalLM",
    "SmolLM3ForCausalLM",
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "DeepseekV3ForCausalLM",
)

EAGLE3_DRAFT_REGISTRY = dict.fromkeys(_DENSE_ARCHITECTURES, DraftSpec(draft_cls=LlamaEagle3DraftModel))
EAGLE3_DRAFT_REGISTRY["GptOssForCausalLM"] = DraftSpec(draft_cls=GptOssEagle3DraftModel)
EAGLE1_DRAFT_REGISTRY = dict.fromkeys(_DENSE_ARCHITECTURES, DraftSpec(draft_cls=LlamaEagleDraftModel))
DFLASH_DRAFT_REGISTRY = dict.fromkeys(EAGLE3_DRAFT_REGISTRY, DraftSpec(draft_cls=DFlashDraftModel))
DSPARK_DRAFT_REGISTRY = dict.fromkeys(EAGLE3_DRAFT_REGISTRY, DraftSpec(draft_cls=DSparkDraftModel))


def _resolve(architectures: list[str] | None, registry: dict[str, DraftSpec], recipe_name: str) -> DraftSpec:
    """Return the first registered draft spec matching any architecture in the list.

    Raises:
        DraftError: naming the architectures given and those known.
    """
    named = architectures or []  # a config that was built and not loaded names none
    for architecture in named:
        if architecture in registry:
            return registry[architecture]
    given = ", ".join(named) or "none"
    raise DraftError(f"no {recipe_name} draft for target architectures ({given}); known: {', '.join(sorted(registry))}")


def resolve_eagle1_draft_spec(architectures: list[str] | None) -> DraftSpec:
    """Resolve the EAGLE-1 / EAGLE-2 draft spec for a target's config.architectures field."""
    return _resolve(architectures, EAGLE1_DRAFT_REGISTRY, "EAGLE-1")


def resolve_eagle3_draft_spec(architectures: list[str] | None) -> DraftSpec:
    """Resolve the EAGLE-3 draft spec for a target's config.architectures field."""
    return _resolve(architectures, EAGLE3_DRAFT_REGISTRY, "EAGLE-3")


def resolve_dflash_draft_spec(architectures: list[str] | None) -> DraftSpec:
    """Resolve the DFlash draft spec for a target's config.architectures field."""
    return _resolve(architectures, DFLASH_DRAFT_REGISTRY, "DFlash")


def resolve_dspark_draft_spec(architectures: list[str] | None) -> DraftSpec:
    """Resolve the DSpark draft spec for a target's config.architectures field."""
    return _resolve(architectures, DSPARK_DRAFT_REGISTRY, "DSpark")
