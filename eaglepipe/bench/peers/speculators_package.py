"""How the steps of the `speculators` package are set up."""

from typing import Any

import torch

MEAN_EPSILON = 1e-5
"""What its mean over slots adds to their number."""


def attentions(device: torch.device) -> tuple[str, ...]:
    """Return the attentions that it can train with on a device."""
    return ("simple_flex_attention",) if device.type == "cuda" else ("sdpa", "eager")


def loss_implementation(device: torch.device) -> str:
    """Return the implementation of its losses that runs on a device; the fused one needs Triton."""
    return "fused" if device.type == "cuda" else "eager"


def row_layouts(device: torch.device) -> dict[str, bool]:
    """Return how rows can be given, and whether their documents are apart; compiled code is for rows of one length."""
    packed = {"packed rows": False}
    return packed if device.type == "cuda" else {**packed, "a document a call": True}


def speculators_config(algorithm: str, draft_tokens: int) -> Any:
    """Return the part of its config that names a target, which is none here."""
    from speculators import SpeculatorsConfig, VerifierConfig
    from speculators.proposals.greedy import GreedyTokenProposalConfig

    return SpeculatorsConfig(
        algorithm=algorithm,
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=draft_tokens)],
        default_proposal_method="greedy",
        verifier=VerifierConfig(name_or_path=None, architectures=[]),
    )
