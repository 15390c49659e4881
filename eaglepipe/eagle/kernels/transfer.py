"""Transfer of small host tensors to a device, without the host waiting for work queued there before."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on `device`; from pageable memory it would begin only when all work queued before it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
