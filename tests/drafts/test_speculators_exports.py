"""Drafts that speculators saved go out to each engine that serves them, and are refused in one line by the others."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.drafts.folder import read_draft_folder
from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.layouts import ENGINES, Engine
from eaglepipe.export.write import export_draft
from tests.drafts.speculators_drafts import (
    NAMES,
    ROOT,
    every_draft,
    initialised,
    logits_of,
    own_logits,
    recorded,
    target_of,
)

UNSERVED: dict[str, dict[str, tuple[str, ...]]] = {
    "defaults": {"sglang": ("norm_before_residual", "sliding_window of 4")},
    "qwen3": {"sglang": ("norm_before_residual", "q_norm", "sliding_window of 4")},
    "three_layers": {
        "sglang": ("norm_before_residual", "sliding_window of 5"),
        "vllm": ("layers differ in their sliding_window",),
    },
    "peagle": {"sglang": ("no P-EAGLE",), "hf": ("q_norm", "norm_before_residual", "sliding_window")},
    "peagle_whole_vocabulary": {"sglang": ("no P-EAGLE",)},
}


def reasons(name: str, engine: Engine) -> tuple[str, ...]:
    by_engine = UNSERVED.get(name, {})
    return by_engine.get(engine) or (by_engine.get("sglang", ()) if engine == "hf" and "peagle" not in name else ())


@pytest.mark.parametrize("engine", ENGINES)
@every_draft
def test_export_holds_the_same_draft_or_tells_what_the_engine_lacks(name: str, engine: Engine, tmp_path: Path) -> None:
    if expected := reasons(name, engine):
        with pytest.raises(DraftError) as refusal:
            export_draft(ROOT / name, engine, out=tmp_path / "out")
        assert "\n" not in str(refusal.value) and all(reason in str(refusal.value) for reason in expected)
        assert not (tmp_path / "out").exists()
        return
    out = export_draft(ROOT / name, engine, out=tmp_path / "out", dtype="float32").folder
    assert check_draft(out, engine).ok
    io, again = recorded(name), initialised(name, folder=out)
    if "embed_tokens.weight" not in load_file(out / "model.safetensors"):  # the engine shares the target's
        assert engine in ("vllm", "sglang") and "peagle" not in name
        embeddings = read_draft_folder(ROOT / name).tensors["embed_tokens.weight"]
        again.get_input_embeddings().weight.data.copy_(embeddings)
    assert torch.equal(logits_of(again, io), own_logits(name))


def test_folders_as_speculators_saved_them_fit_its_format() -> None:
    for name in NAMES:
        report = check_draft(ROOT / name, "speculators")
        assert report.ok, report.table()


def test_positions_other_than_the_targets_are_named(tmp_path: Path) -> None:
    from eaglepipe.drafts.init_from import init_from
    from tests.drafts.speculators_drafts import overrides
    from tests.export.made_drafts import make_draft

    plain = {"rope_type": "default", "rope_theta": 5000.0}
    target = replace(target_of("yarn"), target_config={**target_of("yarn").target_config, "rope_parameters": plain})
    draft = make_draft(target, **overrides(target, target.folder, "eagle3"))
    (note,) = [note for note in init_from(draft, target.folder) if "rope" in note]
    assert (
        "rope scaling yarn (factor 4.0, original_max_position_embeddings 32); this draft has the target's, none" in note
    )
