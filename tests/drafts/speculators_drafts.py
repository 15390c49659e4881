"""The drafts in `speculators/`, which that package's own code saved, and the targets that they are for."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eaglepipe.drafts.folder import read_draft_folder
from eaglepipe.drafts.init_from import init_from
from eaglepipe.drafts.published_vocab import selected_token_ids
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.peagle_attention import peagle_mask
from eaglepipe.errors import DraftError
from tests.export.made_drafts import LLAMA, MadeTarget, make_draft

ROOT = Path(__file__).with_name("speculators")
NAMES = sorted(folder.parent.name for folder in ROOT.glob("*/config.json"))


@dataclass(frozen=True, kw_only=True)
class PublishedFor(MadeTarget):
    """The target of a published draft."""

    folder: Path

    @property
    def selected_token_ids(self) -> torch.Tensor:
        return selected_token_ids(self.folder, read_draft_folder(self.folder))


def target_of(name: str, **config: Any) -> PublishedFor:
    folder = ROOT / name
    draft = read_draft_folder(folder)
    layer = draft.config["transformer_layer_config"]
    own = {
        **LLAMA, "vocab_size": 48, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": layer["rope_parameters"],
    }  # fmt: skip
    ids = tuple(draft.config["eagle_aux_hidden_state_layer_ids"])
    return PublishedFor(
        folder=folder, target_config={**own, **config}, aux_layer_ids=ids, draft_size=draft.shape.draft_vocab_size
    )


def objective_of(name: str) -> str:
    return "peagle" if name.startswith("peagle") else "eagle3"


def overrides(target: MadeTarget, folder: Path, objective: str) -> dict[str, Any]:
    """The settings that the refusal of a draft of the recipe's default shape asks for."""
    mask = {"mask_token_id": target.vocab_size - 1} if objective == "peagle" else {}
    try:
        init_from(make_draft(target, objective, **mask), folder)
    except DraftError as refusal:
        assert "\n" not in str(refusal)
        found = re.findall(r"draft\.(\w+)=(\[[^\]]*\]|\S+)", str(refusal))
        assert found, str(refusal)
        return {**mask, **{name: yaml.safe_load(value) for name, value in found}}
    return mask


def initialised(name: str, target: MadeTarget | None = None, folder: Path | None = None) -> LlamaEagle3DraftModel:
    """A draft of a run that starts from a published one, with the settings that it asks for."""
    target, folder, objective = target or target_of(name), folder or ROOT / name, objective_of(name)
    draft = make_draft(target, objective, **overrides(target, folder, objective))
    init_from(draft, folder)
    assert isinstance(draft, LlamaEagle3DraftModel)
    return draft


@torch.no_grad()
def logits_of(draft: LlamaEagle3DraftModel, io: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of what is recorded beside a published draft: of each step, or of each element."""
    lengths = io["documents"][0].unique(return_counts=True)[1][None]
    if "anchors" not in io:
        state, ids, cache, logits = draft.project_hidden_states(io["aux"]), io["ids"], [], []
        for _ in range(len(io["logits"])):
            state = draft(ids, state, cache_hidden=cache, seq_lens=lengths)
            logits.append(draft.compute_logits(state)[0])
            ids = torch.cat((ids[:, 1:], torch.zeros_like(ids[:, :1])), dim=1)
        return torch.stack(logits)
    slots = io["anchors"] + io["depths"]
    first = (io["depths"] == 0)[None]
    ids = torch.where(first, io["ids"][:, slots], draft.config.mask_token_id)
    projected = draft.project_hidden_states(io["aux"])[:, slots]
    projected = torch.where(first[..., None], projected, draft.masked_projected_hidden())
    mask = peagle_mask(io["anchors"], io["depths"], lengths[0], io["ids"].shape[1])
    return draft.compute_logits(draft.forward_peagle(ids, projected, slots[None], mask))


@cache
def own_logits(name: str) -> torch.Tensor:
    """Logits of a draft that starts from the folder that speculators saved."""
    return logits_of(initialised(name), recorded(name))


def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / name / "io.safetensors")


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


every_draft = pytest.mark.parametrize("name", NAMES)
