"""Drafts that SpecForge's own class saved, against the logits that it computed (`specforge/generate.py`)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.drafts.init_from import init_from
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.write import export_draft
from eaglepipe.files.digests import DIGESTS_FILE
from tests.export.made_drafts import MadeTarget, make_draft, save_draft

ROOT = Path(__file__).parent / "specforge"
SIZES = {"whole_vocabulary": 64, "small_vocabulary": 40}
BOUNDARIES = (2, 4, 5)
ENGINES: tuple[Any, ...] = ("vllm", "sglang", "hf")


def saved(name: str, folder: Path) -> Path:
    """The folder alone, without what is recorded beside it."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(ROOT / name / file, folder / file)
    return folder


def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / name / "io.safetensors")


@torch.no_grad()
def own_chain(folder: Path, name: str) -> torch.Tensor:
    io = recorded(name)
    draft = make_draft(MadeTarget(aux_layer_ids=BOUNDARIES, draft_size=SIZES[name]))
    chosen = load_file(folder / "model.safetensors").get("d2t", torch.zeros(SIZES[name], dtype=torch.int64))
    draft.set_vocab_mapping(chosen + torch.arange(SIZES[name]))
    init_from(draft, folder)
    draft.get_input_embeddings().weight.copy_(io["embeddings"])
    state, ids, cache, logits = draft.project_hidden_states(io["aux"][None]), io["ids"], [], []
    for _ in io["logits.null"]:
        state = draft(ids[None], state, cache_hidden=cache)
        logits.append(draft.compute_logits(state)[0])
        ids = torch.cat([ids[1:], ids.new_zeros(1)])
    return torch.stack(logits)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("engine", [None, "vllm", "sglang"])
def test_its_draft_and_what_is_exported_of_it_compute_its_logits(name: str, engine: Any, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "draft")
    if engine is not None:
        folder = export_draft(folder, engine, dtype="float32", out=tmp_path / "out").folder
        assert check_draft(folder, engine).ok
    torch.testing.assert_close(own_chain(folder, name), recorded(name)["logits.null"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_it_takes_a_false_norm_output_for_no_final_norm(name: str) -> None:
    io = recorded(name)
    assert torch.equal(io["logits.null"], io["logits.true"])
    assert (io["logits.null"] - io["logits.false"]).abs().max() > 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_norm_output_is_written_if_it_is_true_alone(engine: Any, tmp_path: Path) -> None:
    for flag in (False, True):
        run = save_draft(make_draft(MadeTarget(), norm_output=flag, fc_norm=flag), tmp_path / f"run-{flag}")
        out = export_draft(run, engine, out=tmp_path / f"out-{flag}").folder
        config = json.loads((out / "config.json").read_text())
        assert config.get("norm_output") is (True if flag else None)


def test_the_check_warns_of_a_norm_output_that_is_false(tmp_path: Path) -> None:
    folder = export_draft(saved("whole_vocabulary", tmp_path / "draft"), "vllm", out=tmp_path / "out").folder
    assert not [finding for finding in check_draft(folder, "vllm").findings if finding.name == "norm_output"]
    (folder / DIGESTS_FILE).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_output": False}))
    (found,) = [finding for finding in check_draft(folder, "vllm").findings if finding.name == "norm_output"]
    assert found.severity == "warning" and "SpecForge" in found.line()
