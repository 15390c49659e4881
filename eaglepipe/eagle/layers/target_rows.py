"""Copy of rows of the target's weights into a draft that starts from them."""

import torch

from eaglepipe.errors import DraftError


@torch.no_grad()
def copy_rows(parameter: torch.Tensor, source: torch.Tensor, name: str, remedy: str) -> None:
    """Copy `source` into a parameter of the same shape; a sharded (distributed) tensor is gathered first.

    Raises:
        DraftError: the shapes differ; the message names `name` and ends with `remedy`.
    """
    if parameter.shape != source.shape:
        sizes = f"{tuple(source.shape)} do not fit the draft's {tuple(parameter.shape)}"
        raise DraftError(f"target {name} {sizes}; {remedy}")
    gathered = source.full_tensor() if hasattr(source, "full_tensor") else source
    parameter.copy_(gathered.to(parameter.device))
