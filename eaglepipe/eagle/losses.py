"""Soft cross-entropy of a draft against the target's distribution, plainly; float32 whatever the compute dtype."""

import torch


def soft_cross_entropy(logits: torch.Tensor, target_probs: torch.Tensor) -> torch.Tensor:
    """-sum_v p[v] · log softmax(logits)[v] for each row: logits and probabilities [..., D] -> [...], float32."""
    return -(target_probs.float() * logits.float().log_softmax(dim=-1)).sum(dim=-1)
