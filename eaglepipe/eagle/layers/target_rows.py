"""Copy of rows of the target's weights into a draft that starts from them."""

from typing import Any

import torch
from torch import nn

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


class TargetEmbeddingsMixin:
    """Token embeddings [V, H] of a draft that start from the target's."""

    get_input_embeddings: Any

    def copy_embeddings_from_target(self, target_embeddings: nn.Embedding | torch.Tensor) -> None:
        """Start from the target's input embeddings [V, H]; a sharded (distributed) tensor is gathered first.

        They are copied as stored, without the factor by which some targets scale them (sqrt(H) in Gemma): engines share
        the stored rows with the draft, and the fused layer's norm takes any factor out again.

        Raises:
            DraftError: when the draft is narrower or wider than the target.
        """
        weight = target_embeddings.weight if isinstance(target_embeddings, nn.Module) else target_embeddings
        embeddings = self.get_input_embeddings().weight
        copy_rows(embeddings, weight, "token embeddings", "set draft.hidden_size to the target's")

    def freeze_embeddings(self) -> None:
        """Keep the token embeddings out of training."""
        self.get_input_embeddings().weight.requires_grad_(False)
