"""What a target does to the output of its lm_head before softmax, written down so that no target is needed later."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """`logits = soft_cap(logit_scale · (hidden @ weight.T + bias))`; no capping where `soft_cap` is None."""

    logit_scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, raw_logits: torch.Tensor) -> torch.Tensor:
        """Raw head outputs [..., V or D] -> the target's logits, float32."""
        logits = raw_logits.float() * self.logit_scale if self.logit_scale != 1.0 else raw_logits.float()
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap
