"""The families of drafts, one value each: whatever tells them apart is a field here, never a comparison elsewhere.

The module is a leaf, so that every layer may read it. Classes are named as `module:name` and imported at first use:
planning or precomputing loads no training code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of draft."""

    name: str
    """As `train.objective` names it."""
    label: str
    """As people read it."""
    objective: str
    """`module:class` of its `Objective`."""
    draft_spec: str
    """`module:function` that resolves the draft class for a target's architectures."""
    steps: str
    """`module:class` of its `DraftSteps`."""
    engine_architectures: Mapping[str, str]
    """Entry of `architectures` by engine; an engine that is absent does not serve the family."""
    reads_aux: bool = True
    """Whether it reads aux hidden states; otherwise it reads the last hidden state of every token."""
    has_draft_vocab: bool = True
    """Whether it may predict over a draft vocabulary smaller than the target's."""
    is_parallel: bool = False
    """Whether one forward drafts all depths."""

    def load(self, reference: str) -> Any:
        """Import what a `module:name` field of this family refers to."""
        return resolve_name(reference)


_NATIVE = "LlamaForCausalLMEagle3"

EAGLE3 = Family(
    name="eagle3",
    label="EAGLE-3",
    objective="eaglepipe.training.objectives.eagle3:Eagle3Objective",
    draft_spec="eaglepipe.eagle.registry:resolve_eagle3_draft_spec",
    steps="eaglepipe.decoding.eagle3_steps:Eagle3Steps",
    engine_architectures={
        "vllm": _NATIVE,
        "sglang": _NATIVE,
        "speculators": "Eagle3DraftModel",
        "hf": _NATIVE,
    },
)
EAGLE1 = Family(
    name="eagle1",
    label="EAGLE-1",
    objective="eaglepipe.training.objectives.eagle1:Eagle1Objective",
    draft_spec="eaglepipe.eagle.registry:resolve_eagle1_draft_spec",
    steps="eaglepipe.decoding.eagle1_steps:Eagle1Steps",
    engine_architectures={"vllm": "LlamaForCausalLM", "sglang": "LlamaForCausalLMEagle", "hf": "LlamaForCausalLM"},
    reads_aux=False,
    has_draft_vocab=False,
)
PEAGLE = Family(
    name="peagle",
    label="P-EAGLE",
    objective="eaglepipe.training.objectives.peagle:PeagleObjective",
    draft_spec="eaglepipe.eagle.registry:resolve_eagle3_draft_spec",
    steps="eaglepipe.decoding.eagle3_steps:PeagleSteps",
    engine_architectures={"vllm": _NATIVE, "speculators": "PEagleDraftModel", "hf": _NATIVE},
    is_parallel=True,
)
EAGLE2 = replace(EAGLE1, name="eagle2", label="EAGLE-2")
"""Trained as EAGLE-1; its drafts are decoded as a dynamic tree."""

FAMILIES: Mapping[str, Family] = {family.name: family for family in (EAGLE3, EAGLE1, EAGLE2, PEAGLE)}
