"""The families of drafts, one value each: every difference between them is a field here or a class that a field names.

The module is a leaf, so that every layer may read it. Classes are named as `module:name` and imported at first use:
planning or precomputing loads no training code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of draft."""

    name: str
    """As `train.objective` names it."""
    label: str
    """As people read it."""
    draft_label: str
    """As people read it of a stored draft, in which EAGLE-1 and EAGLE-2 are the same."""
    recipe: str
    """`module:class` of its `Recipe`, with the settings of `draft` and `train` that it has of its own."""
    depths_setting: str = "ttt_steps"
    """Setting of `train` that holds the number of depths, `anchor_slots` more if a draft works on blocks."""
    anchor_slots: int = 0
    """Slots at the start of a block that guess nothing."""
    objective: str
    """`module:class` of its `Objective`."""
    builder: str
    """`module:function` that builds an untrained draft."""
    draft_spec: str
    """`module:function` that resolves the draft class for a target's architectures."""
    steps: str
    """`module:class` of its `DraftSteps`."""
    engine_architectures: Mapping[str, str]
    """Entry of `architectures` by engine; an engine that is absent does not serve the family."""
    engine_method: str
    """As servers name it: the `method` of vLLM, in capitals the algorithm of SGLang."""
    speculators_type: str | None = None
    """`speculators_model_type` of its drafts; None if that format has none."""
    normed_label: str | None = None
    """Label of its drafts with `fc_norm` or `norm_output`, if they have one of their own."""
    cache_needs: Mapping[str, str | bool] = field(default_factory=dict)
    """Settings of `cache` without which it cannot be trained."""
    own_tensor: str | None = None
    """Canonical name of a tensor that only its drafts have, by which a stored draft is recognised."""
    reads_aux: bool = True
    """Whether it reads aux hidden states; otherwise it reads the last hidden state of every token."""
    has_draft_vocab: bool = True
    """Whether it may predict over a draft vocabulary smaller than the target's."""
    is_parallel: bool = False
    """Whether one forward drafts all depths."""
    drafts_blocks: bool = False
    """Whether its drafts guess a block of masked tokens from a context of their own, under the target's embeddings."""
    has_mask_token: bool = False
    """Whether a mask token and `mask_hidden` stand for tokens not known yet."""
    splits_sequences: bool = False
    """Whether several ranks can train on one sample together, each on a part of its tokens."""
    holds_scores: bool = False
    """Whether training holds the attention scores of a whole row, so that long rows are expensive."""

    def load(self, reference: str) -> Any:
        """Import what a `module:name` field of this family refers to."""
        return resolve_name(reference)

    def unmet_needs(self, cache: Mapping[str, Any]) -> list[str]:
        """Return the `cache_needs` that a `cache` section does not meet, as overrides of a recipe."""
        needs = self.cache_needs.items()
        return [f"cache.{name}={str(value).lower()}" for name, value in needs if cache.get(name) != value]


_NATIVE = "LlamaForCausalLMEagle3"

EAGLE3 = Family(
    name="eagle3",
    label="EAGLE-3",
    recipe="eaglepipe.recipe.family_settings:Eagle3Recipe",
    draft_label="EAGLE-3",
    normed_label="EAGLE-3.1",
    objective="eaglepipe.training.objectives.eagle3:Eagle3Objective",
    builder="eaglepipe.training.objectives.builders:build_eagle3_draft",
    draft_spec="eaglepipe.eagle.registry:resolve_eagle3_draft_spec",
    steps="eaglepipe.decoding.eagle3_steps:Eagle3Steps",
    engine_architectures={"vllm": _NATIVE, "sglang": _NATIVE, "speculators": "Eagle3DraftModel", "hf": _NATIVE},
    engine_method="eagle3",
    speculators_type="eagle3",
    splits_sequences=True,
)
EAGLE1 = Family(
    name="eagle1",
    label="EAGLE-1",
    recipe="eaglepipe.recipe.family_settings:Eagle1Recipe",
    draft_label="EAGLE-1/2",
    objective="eaglepipe.training.objectives.eagle1:Eagle1Objective",
    builder="eaglepipe.training.objectives.builders:build_eagle1_draft",
    draft_spec="eaglepipe.eagle.registry:resolve_eagle1_draft_spec",
    steps="eaglepipe.decoding.eagle1_steps:Eagle1Steps",
    engine_architectures={"vllm": "LlamaForCausalLM", "sglang": "LlamaForCausalLMEagle", "hf": "LlamaForCausalLM"},
    cache_needs={"supervision": "hidden", "last_hidden": "all", "full_head": True},
    engine_method="eagle",
    reads_aux=False,
    has_draft_vocab=False,
    holds_scores=True,
)
PEAGLE = Family(
    name="peagle",
    label="P-EAGLE",
    recipe="eaglepipe.recipe.family_settings:PeagleRecipe",
    depths_setting="peagle_depths",
    draft_label="P-EAGLE",
    objective="eaglepipe.training.objectives.peagle:PeagleObjective",
    builder="eaglepipe.training.objectives.builders:build_peagle_draft",
    draft_spec="eaglepipe.eagle.registry:resolve_eagle3_draft_spec",
    steps="eaglepipe.decoding.eagle3_steps:PeagleSteps",
    engine_architectures={"vllm": _NATIVE, "speculators": "PEagleDraftModel", "hf": _NATIVE},
    engine_method="eagle3",
    speculators_type="peagle",
    own_tensor="mask_hidden",
    is_parallel=True,
    has_mask_token=True,
)
DFLASH = Family(
    name="dflash",
    label="DFlash",
    recipe="eaglepipe.recipe.block_settings:DflashRecipe",
    depths_setting="block_size",
    anchor_slots=1,
    draft_label="DFlash",
    objective="eaglepipe.training.objectives.dflash:DflashObjective",
    builder="eaglepipe.training.objectives.dflash_builder:build_dflash_draft",
    draft_spec="eaglepipe.eagle.registry:resolve_dflash_draft_spec",
    steps="eaglepipe.decoding.dflash_steps:DflashSteps",
    engine_architectures=dict.fromkeys(("vllm", "sglang", "speculators", "hf"), "DFlashDraftModel"),
    engine_method="dflash",
    speculators_type="dflash",
    own_tensor="hidden_norm.weight",
    is_parallel=True,
    drafts_blocks=True,
)
DSPARK = replace(
    DFLASH,
    name="dspark",
    label="DSpark",
    recipe="eaglepipe.recipe.block_settings:DsparkRecipe",
    anchor_slots=0,
    draft_label="DSpark",
    objective="eaglepipe.training.objectives.dspark:DsparkObjective",
    builder="eaglepipe.training.objectives.dflash_builder:build_dspark_draft",
    draft_spec="eaglepipe.eagle.registry:resolve_dspark_draft_spec",
    steps="eaglepipe.decoding.dspark_steps:DsparkSteps",
    engine_architectures={
        **dict.fromkeys(("vllm", "sglang", "hf"), "Qwen3DSparkModel"),
        "speculators": "DSparkDraftModel",
    },
    engine_method="dspark",
    speculators_type="dspark",
    own_tensor="markov_head.markov_w1.weight",
)
EAGLE2 = replace(EAGLE1, name="eagle2", label="EAGLE-2")
"""Trained as EAGLE-1; its drafts are decoded as a dynamic tree."""

FAMILIES: Mapping[str, Family] = {family.name: family for family in (EAGLE3, EAGLE1, EAGLE2, PEAGLE, DFLASH, DSPARK)}
DEFAULT_FAMILY = EAGLE3
"""Family of a recipe without `train.objective`."""


def default_boundaries(num_layers: int) -> tuple[int, int, int]:
    """Return the boundaries that engines take if a draft's config names none: [2, n//2, n-3] of n layers.

    Boundary b is `output_hidden_states[b]`, the output of layer b-1.
    """
    return 2, num_layers // 2, num_layers - 3
