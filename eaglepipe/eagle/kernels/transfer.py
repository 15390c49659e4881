"""Small host tensors on their way to a device, without the host waiting for what the device has to do first."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on `device`; from pageable memory it would begin only when all work queued before it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
