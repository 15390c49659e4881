"""Drafts that speculators' own code saved come in, and compute what its modules computed."""

import torch

from tests.drafts.speculators_drafts import (
    NAMES,
    assert_same,
    every_draft,
    initialised,
    logits_of,
    objective_of,
    overrides,
    own_logits,
    recorded,
    target_of,
)


def test_every_configuration_is_there() -> None:
    assert len(NAMES) == 8


@every_draft
def test_initialised_draft_computes_what_its_own_module_did(name: str) -> None:
    io = recorded(name)
    assert_same(own_logits(name), io["logits"])


def test_refusal_names_the_settings_of_speculators_own_defaults() -> None:
    target = target_of("qwen3")
    assert overrides(target, target.folder, objective_of("qwen3")) == {
        "norm_before_fc": True, "norm_before_residual": True, "norm_output": True, "qk_norm": True, "sliding_window": 4,
    }  # fmt: skip
    three = target_of("three_layers")
    assert overrides(three, three.folder, "eagle3")["full_attention_layers"] == [1]


def test_windows_and_norms_change_what_is_computed() -> None:
    """Guards the comparison above against inputs that no option matters for."""
    for name, option in (("defaults", "sliding_window"), ("qwen3", "layer_types")):
        draft, io = initialised(name), recorded(name)
        delattr(draft.config, option) if option == "layer_types" else setattr(draft.config, option, None)
        assert not torch.allclose(logits_of(draft, io), io["logits"], atol=1e-2)
