"""Which draft a target architecture gets."""

import pytest
from transformers import LlamaConfig

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.registry import EAGLE3_DRAFT_REGISTRY, resolve_eagle1_draft_spec, resolve_eagle3_draft_spec
from eaglepipe.errors import DraftError


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"]
)
def test_dense_architectures_get_the_llama_draft(architecture):
    assert resolve_eagle3_draft_spec(["SomethingElse", architecture]).draft_cls is LlamaEagle3DraftModel


def test_unknown_architectures_are_named_with_the_known_ones():
    with pytest.raises(DraftError, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        resolve_eagle3_draft_spec(["MambaForCausalLM"])
    assert "LlamaForCausalLM" in EAGLE3_DRAFT_REGISTRY


@pytest.mark.parametrize("resolve", [resolve_eagle1_draft_spec, resolve_eagle3_draft_spec])
def test_a_config_that_names_no_architecture_is_told_what_is_known(resolve):
    with pytest.raises(DraftError, match=r"\(none\); known: .*LlamaForCausalLM"):
        resolve(LlamaConfig().architectures)
