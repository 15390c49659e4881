"""Rows in the encoding of a codec."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """N rows as bytes: `payload` uint8 [N, row_bytes], `scales` [N, num_scales] if the codec keeps them apart."""

    payload: torch.Tensor
    scales: torch.Tensor | None = None
