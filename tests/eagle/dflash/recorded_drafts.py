"""The block drafts in `recorded/`, as the `speculators` package ran them, and the losses that it reported."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eaglepipe.eagle.dflash.losses import BlockLoss, BlockLossSums, BlockTargets, block_loss

ROOT = Path(__file__).with_name("recorded")
NAMES = sorted(path.stem for path in ROOT.glob("*.safetensors") if path.stem != "target")
TERMS = {
    "ce": {},
    "kl_div": {"ce": 0.0, "kl": 1.0},
    "tv": {"ce": 0.0, "tv": 1.0, "gamma": 5.0},
    '{"ce": 0.1, "tv": 1.8}': {"ce": 0.1, "tv": 1.8, "gamma": 7.0},
    "ce, dpace": {"weights": "dpace"},
    "ce, dpace 0.2": {"weights": "dpace", "dpace_alpha": 0.2},
}
MIXED = '{"ce": 0.1, "tv": 1.8}'


@cache
def target() -> dict[str, torch.Tensor]:
    """A packed row's ids, lengths and states, and the target's embeddings, norm and head; float32."""
    tensors = load_file(ROOT / "target.safetensors")
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A draft with what it computed for N anchors with blocks of B slots."""

    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def is_dspark(self) -> bool:
        return "markov_rank" in self.settings

    @property
    def anchors(self) -> torch.Tensor:
        return self.tensors["anchors"]

    @property
    def tokens(self) -> torch.Tensor:
        """Positions in the packed row of the blocks' slots, int64 [N, B]."""
        return self.anchors[:, None] + torch.arange(self.settings["block_size"])

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        found = {key: value.float() for key, value in self.tensors.items() if key.startswith("draft.")}
        return {key.removeprefix("draft."): value for key, value in found.items()}

    @property
    def selected_token_ids(self) -> torch.Tensor:
        size, ids = self.settings["draft_vocab_size"], target()["selected_token_ids"]
        return ids if size == len(ids) else torch.arange(size)

    def targets(self) -> BlockTargets:
        """The target's distributions inside the draft vocabulary and their argmax, which are labels there."""
        rows = self.tokens - (0 if self.settings["sample_from_anchor"] else 1)
        states = target()["last_hidden"][rows]
        normed = states * (states.square().mean(-1, keepdim=True) + self.settings["layer"]["rms_norm_eps"]).rsqrt()
        probs = (normed * target()["norm"] @ target()["lm_head"][self.selected_token_ids].t()).softmax(dim=-1)
        return BlockTargets(mask=self.tensors["mask"], labels=probs.argmax(dim=-1), probs=probs)

    def sums(self, kind: str, logits: torch.Tensor, confidence_logits: torch.Tensor | None = None) -> BlockLossSums:
        """Our loss of one kind."""
        confidence = 0.0 if confidence_logits is None else 1.0
        anchor = self.settings["sample_from_anchor"]
        settings = BlockLoss(**TERMS[kind], confidence=confidence, sample_from_anchor=anchor)
        return block_loss(settings, logits, self.targets(), confidence_logits)


@cache
def recorded(name: str) -> Recorded:
    path = ROOT / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    return Recorded(settings=settings, tensors=load_file(path))
