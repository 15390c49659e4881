"""From logits to the distribution that is sampled from, and draws from it.

Shapes: any leading dimensions, V tokens.
"""

import torch


def distribution(logits: torch.Tensor, temperature: float, top_p: float = 1.0) -> torch.Tensor:
    """Logits [..., V] -> probabilities [..., V] at a positive temperature, outside the nucleus zero.

    Not renormalised after the cut; rows with NaN become uniform.
    """
    probs = (logits / temperature).softmax(dim=-1).nan_to_num(nan=1.0)
    if top_p >= 1.0:
        return probs
    ordered, ids = probs.sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_p
    return torch.zeros_like(probs).scatter(-1, ids, ordered.masked_fill(outside, 0.0))


def draw(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token for each row of weights [..., V], which need not add up to 1: int64 [...]."""
    drawn = torch.rand(*weights.shape[:-1], generator=generator, device=weights.device, dtype=torch.float64)
    return pick(weights, drawn)


def pick(weights: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """The same by numbers in [0, 1), float64 [...], that were drawn before."""
    heights = weights.double().cumsum(dim=-1)
    picked = torch.searchsorted(heights, drawn[..., None] * heights[..., -1:], right=True)
    return picked.squeeze(-1).clamp(max=weights.shape[-1] - 1)
