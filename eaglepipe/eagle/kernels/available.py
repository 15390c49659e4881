"""The kernels of the compact unroll that a device has, each tried as a run tries it."""

import torch

from eaglepipe.eagle.kernels.fused_head import wide_products_work
from eaglepipe.eagle.kernels.row_kernels import compiled_works
from eaglepipe.eagle.unroll.attention.varlen import varlen_works

_HEADS = (8, 4, 128)
"""Key-value heads, query heads of each, and their size, as most targets of 8B parameters have them."""
_DRAFT_SIZE = 32_000


def try_kernels(device: torch.device) -> dict[str, bool]:
    """Try each kernel in bfloat16 and return whether it passes, by name; compiling takes seconds, failures warn."""
    return {
        "varlen attention": varlen_works(device, torch.bfloat16, *_HEADS),
        "compiled loss": compiled_works(device, _DRAFT_SIZE),
        "products into float32": wide_products_work(device, torch.bfloat16),
    }
