"""Copy of rows of the target's weights into a draft that starts from them."""

from typing import Any, Protocol

import torch
from torch import nn

from eaglepipe.errors import DraftError


class HasWeight(Protocol):
    """Embeddings of any kind: their rows [V, H], perhaps sharded."""

    @property
    def weight(self) -> torch.Tensor: ...


@torch.no_grad()
def copy_rows(parameter: torch.Tensor, source: torch.Tensor, name: str, remedy: str) -> None:
    """Copy `source` into a parameter of the same shape; a sharded (distributed) tensor is gathered first.

    Raises:
        DraftError: the shapes differ; the message names `name` and ends with `remedy`.
    """
    gathered = source.full_tensor() if hasattr(source, "full_tensor") else source
    if parameter.shape != gathered.shape:
        sizes = f"{tuple(gathered.shape)} do not fit the draft's {tuple(parameter.shape)}"
        raise DraftError(f"target {name} {sizes}; {remedy}")
    parameter.copy_(gathered.to(parameter.device))


def find_weight(owner: Any) -> torch.Tensor:
    """Return the weight of a module or of anything with a `.weight`, through wrappers with a `.module`; or the tensor.

    Raises:
        DraftError: there is none.
    """
    found = owner
    while not isinstance(found, torch.Tensor) and not hasattr(found, "full_tensor"):
        found = getattr(found, "weight", None) if hasattr(found, "weight") else getattr(found, "module", None)
        if found is None:
            raise DraftError(f"a {type(owner).__name__} has no weight to copy; give the target's embeddings")
    return found


class TargetEmbeddingsMixin:
    """Token embeddings [V, H] of a draft that start from the target's."""

    get_input_embeddings: Any

    def copy_embeddings_from_target(self, target_embeddings: nn.Embedding | torch.Tensor | HasWeight) -> None:
        """Start from the target's input embeddings [V, H]: a module, anything with a `.weight`, or the tensor itself.

        A sharded (distributed) tensor is gathered first.

        They are copied as stored, without the factor by which some targets scale them (sqrt(H) in Gemma): engines share
        the stored rows with the draft, and the fused layer's norm takes any factor out again.

        Raises:
            DraftError: when the draft is narrower or wider than the target, or there is no weight.
        """
        embeddings = self.get_input_embeddings().weight
        copy_rows(
            embeddings, find_weight(target_embeddings), "token embeddings", "set draft.hidden_size to the target's"
        )

    def freeze_embeddings(self) -> None:
        """Keep the token embeddings out of training."""
        self.get_input_embeddings().weight.requires_grad_(False)
