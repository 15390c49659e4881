"""The drafts in `speculators/blocks/`, which that package's own code saved, and drafts that start from them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import PreTrainedModel

from eaglepipe.drafts.folder import read_draft_folder
from eaglepipe.drafts.init_from import init_from
from eaglepipe.drafts.published_vocab import selected_token_ids
from eaglepipe.eagle.dflash.visibility import DenseVisibility
from eaglepipe.errors import DraftError
from eaglepipe.families import FAMILIES
from tests.export.made_drafts import LLAMA, MadeTarget, make_draft

ROOT = Path(__file__).with_name("speculators") / "blocks"
NAMES = sorted(folder.parent.name for folder in ROOT.glob("*/config.json"))
KNOWN = [name for name in NAMES if name.partition("_")[0] in FAMILIES]
DEPTH = 10
"""Layers of the target."""


@dataclass(frozen=True, kw_only=True)
class BlockTarget(MadeTarget):
    """The target of a published block draft, whose embeddings and head are recorded beside it."""

    name: str

    @property
    def selected_token_ids(self) -> torch.Tensor:
        return selected_token_ids(ROOT / self.name, read_draft_folder(ROOT / self.name))

    def start_tensors(self) -> dict[str, torch.Tensor]:
        io = recorded(self.name)
        return {"embed_tokens.weight": io["embed_tokens"], "lm_head.weight": io["lm_head"]}


def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / name / "io.safetensors")


def target_of(name: str, **config: Any) -> BlockTarget:
    draft = read_draft_folder(ROOT / name)
    layer = draft.config["transformer_layer_config"]
    own = {
        **LLAMA, "vocab_size": 48, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": layer["rope_parameters"],
    }  # fmt: skip
    ids = tuple(draft.config["aux_hidden_state_layer_ids"])
    return BlockTarget(
        name=name, target_config={**own, **config}, aux_layer_ids=ids, draft_size=draft.shape.draft_vocab_size
    )


def objective_of(name: str) -> str:
    return name.partition("_")[0]


def overrides(name: str, folder: Path | None = None) -> dict[str, Any]:
    """The settings that the refusal of a draft of the recipe's default shape asks for."""
    given = {"mask_token_id": 47}
    try:
        init_from(make_draft(target_of(name), objective_of(name), **given), folder or ROOT / name)
    except DraftError as refusal:
        assert "\n" not in str(refusal)
        found = re.findall(r"draft\.(\w+)=(\[[^\]]*\]|\S+)", str(refusal))
        assert found, str(refusal)
        return {**given, **{key: yaml.safe_load(value) for key, value in found}}
    return given


def initialised(name: str, folder: Path | None = None) -> PreTrainedModel:
    """A draft of a run that starts from a published one, with the settings that it asks for."""
    draft = make_draft(target_of(name), objective_of(name), **overrides(name, folder))
    init_from(draft, folder or ROOT / name)
    return draft


@torch.no_grad()
def states_of(draft: Any, io: dict[str, torch.Tensor]) -> torch.Tensor:
    """States [anchors, block, H] of the blocks that are recorded beside a published draft."""
    anchors, positions, width = io["anchors"], io["positions"][0], io["logits"].shape[1]
    ids = torch.full((len(anchors), width), draft.config.mask_token_id)
    ids[:, 0] = io["ids"][0, anchors]
    visibility = DenseVisibility(
        starts=anchors - positions[anchors],
        stops=anchors,
        num_context=len(positions),
        width=width,
        device=torch.device("cpu"),
    )
    context = draft.project_hidden_states(io["aux"][0])
    states: torch.Tensor = draft(ids, positions[anchors][:, None] + torch.arange(width), context, positions, visibility)
    return states.unflatten(0, (len(anchors), width))
