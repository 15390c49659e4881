"""The target's lm_head as plain values, so that its logits can be computed where the target is not.

Shapes: V target vocabulary, D draft vocabulary, Ht the target's hidden size, R rows of a head (V, D or some of them).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

HALF_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """`logits = soft_cap(logit_scale · (hidden @ weight.T + bias))`; no capping if `soft_cap` is None."""

    logit_scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, raw_logits: torch.Tensor) -> torch.Tensor:
        """Turn raw head outputs [..., R] into the target's logits, float32."""
        logits = raw_logits.float() * self.logit_scale if self.logit_scale != 1.0 else raw_logits.float()
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap


@dataclass(frozen=True, kw_only=True)
class TargetHead:
    """Rows of the target's lm_head, and the scale and cap of its logits."""

    weight: torch.Tensor  # [R, Ht]
    bias: torch.Tensor | None = None  # [R]
    spec: HeadSpec = HeadSpec()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], spec: HeadSpec, *, full: bool = False) -> "TargetHead":
        """Return the rows of the draft vocabulary, or with `full` those of every token, if the tensors hold them.

        Args:
            tensors: those of a cache's `target.safetensors`.
        """
        name = "lm_head_full" if full and "lm_head_full.weight" in tensors else "lm_head"
        return cls(weight=tensors[f"{name}.weight"], bias=tensors.get(f"{name}.bias"), spec=spec)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TargetHead":
        """Move the rows; by default they keep their dtype on CUDA and become float32 elsewhere. The bias is float32."""
        narrow = self.weight.dtype if torch.device(device).type == "cuda" else torch.float32
        bias = None if self.bias is None else self.bias.to(device, torch.float32)
        return TargetHead(weight=self.weight.to(device, dtype or narrow), bias=bias, spec=self.spec)

    def select(self, token_ids: torch.Tensor) -> "TargetHead":
        """Return the rows of some token ids of a head that has the rows of every token."""
        bias = None if self.bias is None else self.bias[token_ids]
        return TargetHead(weight=self.weight[token_ids], bias=bias, spec=self.spec)

    def product(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states [..., Ht] -> hidden @ weight.T, accumulated and returned in float32: [..., R].

        Rows [N, Ht] on CUDA in the weight's own half type stay half.
        """
        if hidden.is_cuda and hidden.dtype == self.weight.dtype and hidden.dtype in HALF_TYPES:
            return torch.mm(hidden, self.weight.T, out_dtype=torch.float32)
        return hidden.float() @ self.weight.float().T

    def finish(self, product: torch.Tensor) -> torch.Tensor:
        """Products [..., R] -> the target's logits, float32."""
        return self.spec.apply(product if self.bias is None else product + self.bias.float())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states [..., Ht] -> the target's logits, float32 [..., R]."""
        return self.finish(self.product(hidden))

    def probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states [N, Ht] -> the target's distribution over the head's rows, float32 [N, R]."""
        return torch.softmax(self.logits(hidden), dim=-1)


@torch.no_grad()
def target_distribution(
    target_logits: torch.Tensor,
    selected_token_ids: torch.Tensor,
    selected_token_mask: torch.Tensor,
    loss_mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Project target logits into the draft vocabulary and build the supervision mask.

    Args:
        target_logits: [..., V].
        selected_token_ids: int64 [D].
        selected_token_mask: bool [V].
        loss_mask: [...], 1 if supervised.

    Returns: probabilities float32 [..., D] that sum to 1 inside the draft vocabulary, and bool [..., 1], True if the
        slot is supervised and the target's argmax is in the draft vocabulary.
    """
    selected = target_logits.index_select(-1, selected_token_ids.to(target_logits.device))
    covered = selected_token_mask.to(target_logits.device)[target_logits.argmax(dim=-1)]
    return selected.float().softmax(dim=-1), (covered & loss_mask.bool())[..., None]


@torch.no_grad()
def compute_draft_mass(target_logits: torch.Tensor, selected_token_ids: torch.Tensor) -> torch.Tensor:
    """Return the share of softmax(target_logits) in the draft vocabulary: [..., V] -> float32 [...], at most 1."""
    selected = target_logits.index_select(-1, selected_token_ids.to(target_logits.device)).float().logsumexp(dim=-1)
    return (selected - target_logits.float().logsumexp(dim=-1)).exp().clamp(max=1.0)
