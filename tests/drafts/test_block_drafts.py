"""Block drafts that speculators saved come in and compute what its modules did, and others are refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eaglepipe.drafts.init_from import init_from
from eaglepipe.errors import DraftError
from tests.drafts.block_drafts import KNOWN, NAMES, ROOT, initialised, overrides, recorded, states_of, target_of
from tests.drafts.speculators_drafts import assert_same
from tests.export.made_drafts import make_draft

DFLASH = [name for name in KNOWN if name.startswith("dflash")]


def test_every_configuration_is_there() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", DFLASH)
def test_initialised_draft_computes_what_its_own_module_did(name: str) -> None:
    draft, io = initialised(name), recorded(name)
    assert_same(draft.compute_logits(states_of(draft, io)), io["logits"])


@pytest.mark.parametrize("name", ["dspark", "dspark_gated"])
@torch.no_grad()
def test_initialised_heads_compute_what_their_own_modules_did(name: str) -> None:
    draft: Any = initialised(name)
    io = recorded(name)
    states = states_of(draft, io)
    previous = io["ids"][0, io["anchors"][:, None] + torch.arange(states.shape[1])]
    assert_same(draft.compute_logits(states) + draft.markov_bias(states, previous), io["logits"])
    assert_same(draft.forecast(states, previous), io["confidences"])


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("dspark_rnn", "its markov_head_type is rnn, which no DSpark draft here has"),
        ("dspark_bonus_anchor", "its sample_from_anchor is False, which no DSpark draft here has"),
    ],
)
def test_heads_that_no_draft_here_has_are_refused(name: str, named: str) -> None:
    with pytest.raises(DraftError, match=named):
        init_from(make_draft(target_of(name), "dspark", mask_token_id=47), ROOT / name)


def test_dspark_starts_from_a_dflash_backbone() -> None:
    draft = make_draft(target_of("dflash"), "dspark", **overrides("dflash"))
    (note, *_) = init_from(draft, ROOT / "dflash")
    assert "markov_head.markov_w1.weight" in note and "as newly built" in note
    with pytest.raises(DraftError, match="unknown markov_head"):
        init_from(make_draft(target_of("dspark"), "dflash", **overrides("dflash")), ROOT / "dspark")


def test_refusal_names_the_settings_of_windows() -> None:
    settings = overrides("dflash_mixed")
    assert settings["sliding_window"] == 4 and settings["full_attention_layers"] == [1]
    assert settings["sliding_window_non_causal"] is True
    assert "sliding_window_non_causal" not in overrides("dflash")


def test_other_layers_of_the_target_are_named() -> None:
    target = target_of("dflash")
    other = make_draft(type(target)(**{**vars(target), "aux_layer_ids": (2, 4, 7)}), "dflash", **overrides("dflash"))
    with pytest.raises(DraftError, match=r"reads target layers \[2, 5, 7\], this draft boundaries \[2, 4, 7\]"):
        init_from(other, ROOT / "dflash")


def test_block_size_and_mask_token_that_differ_are_noted() -> None:
    draft = make_draft(target_of("dflash"), "dflash", **{**overrides("dflash"), "mask_token_id": 46})
    notes = " ".join(init_from(draft, ROOT / "dflash"))
    assert "blocks of 4; this draft has 8" in notes and "mask token 47; this draft has 46" in notes


@pytest.mark.parametrize("objective", ["eagle3", "eagle1"])
def test_other_families_cannot_start_from_a_block_draft(objective: str) -> None:
    with pytest.raises(DraftError, match="a DFlash draft cannot initialise an EAGLE"):
        init_from(make_draft(target_of("dflash"), objective), ROOT / "dflash")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("architectures", ["DFlash2DraftModel"], "DFlash2DraftModel: a kind of block draft that is not known"),
        ("speculators_model_type", "dflash2", "dflash2: a kind of block draft"),
        ("dflash_config", {"attention_sink_bias": True}, "dflash_config.attention_sink_bias: a kind of block draft"),
        ("block_size", 0, "block_size is 0, not a whole number from 1"),
        ("dflash_config", [1], "dflash_config is \\[1\\], not an object"),
    ],
)
def test_drafts_of_unknown_kinds_and_types_are_refused(field: str, value: object, named: str, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "dflash", tmp_path / "draft", ignore=shutil.ignore_patterns("io*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(DraftError, match=named):
        init_from(make_draft(target_of("dflash"), "dflash", mask_token_id=47), folder)


def test_windows_and_their_causality_change_what_is_computed() -> None:
    """Guards the comparison above against inputs that no option matters for."""
    for name, changed in (
        ("dflash_window", {"sliding_window_non_causal": False}),
        ("dflash_mixed", {"sliding_window": 3}),
    ):
        draft, io = initialised(name), recorded(name)
        for field, value in changed.items():
            setattr(draft.config, field, value)
        assert not torch.allclose(draft.compute_logits(states_of(draft, io)), io["logits"], atol=1e-2)
