"""Rotary position embedding from a Hugging Face config, through transformers' own initialisers.

Frequencies are float32 and no buffer, so that casting a model never rounds them and no checkpoint holds them.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from eaglepipe.eagle.completed_config import completed_config
from eaglepipe.errors import DraftError

Rotary = tuple[torch.Tensor, torch.Tensor]
_LENGTH_DEPENDENT = ("dynamic", "longrope")


class Eagle3LlamaRotaryEmbedding(nn.Module):
    """cos and sin tables for `default` rope and every type that transformers initialises, partial rotary included.

    Raises:
        DraftError: for a rope type that transformers has no initialiser for, or one rope for each layer type.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config = completed_config(config)
        self.rope_type = str(config.rope_parameters["rope_type"])
        if self.rope_type != "default" and self.rope_type not in ROPE_INIT_FUNCTIONS:
            known = ", ".join(["default", *ROPE_INIT_FUNCTIONS])
            raise DraftError(f"rope type {self.rope_type!r} of the draft's config is not one of: {known}")
        self._fixed: dict[torch.device, tuple[torch.Tensor, float]] = {}

    def forward(self, position_ids: torch.Tensor, longest: torch.Tensor | None = None) -> Rotary:
        """Return cos, sin [..., R], float32, for `position_ids` int64 [...]; R <= head_dim is the rotated part.

        `longest` (int64, no dimensions) is the number of positions that decides the frequencies of dynamic and long
        rope, as the longest sequence does in the target; by default the largest of `position_ids` plus one.
        """
        inv_freq, scaling = self._frequencies(position_ids, longest)
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * scaling, angles.sin() * scaling

    def _frequencies(self, position_ids: torch.Tensor, longest: torch.Tensor | None) -> tuple[torch.Tensor, float]:
        device = position_ids.device
        if self.rope_type not in _LENGTH_DEPENDENT:
            if device not in self._fixed:
                self._fixed[device] = self._initialise(device, None)
            return self._fixed[device]
        longest = position_ids.max() + 1 if longest is None else longest
        if self.rope_type == "dynamic":
            return self._initialise(device, longest)
        original = self.config.rope_parameters["original_max_position_embeddings"]
        short, scaling = self._initialise(device, None)
        long, _ = self._initialise(device, original + 1)
        return torch.where(longest > original, long, short), scaling

    @torch.inference_mode(False)
    @torch.no_grad()
    def _initialise(self, device: torch.device, length: torch.Tensor | int | None) -> tuple[torch.Tensor, float]:
        if self.rope_type == "default":
            return _default_frequencies(self.config, device), 1.0
        try:
            inv_freq, scaling = ROPE_INIT_FUNCTIONS[self.rope_type](self.config, device, seq_len=length)
        except KeyError as absent:
            raise DraftError(f"rope type {self.rope_type!r} of the draft's config comes without {absent}") from None
        return inv_freq.to(device=device, dtype=torch.float32), float(scaling)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first R of `states` [..., heads, tokens, d] by cos, sin that broadcast to [..., heads, tokens, R]."""
    rotated_size = cos.shape[-1]
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)
    part = states[..., :rotated_size]
    half_turned = torch.cat((-part[..., rotated_size // 2 :], part[..., : rotated_size // 2]), dim=-1)
    rotated = part * cos + half_turned * sin
    return rotated if rotated_size == states.shape[-1] else torch.cat((rotated, states[..., rotated_size:]), dim=-1)


def _default_frequencies(config: Any, device: torch.device) -> torch.Tensor:
    rotary_dim = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponents)
