"""Models whose decoder layers hold no weights and hand their input on, so that any target fits in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from eaglepipe.errors import TargetError
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.target.layers import find_decoder, find_layers
from eaglepipe.target.load import auto_class

_PACKINGS = (0, 1, 2)


class _Layer(nn.Module):
    """In place of a decoder layer, with its attributes: hands on its input, or the states that it is given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        self.given: torch.Tensor | None = None
        self.packing = 0  # items of the tuple that this decoder's layers return; 0: the states themselves

    def forward(self, *args: Any, **inputs: Any) -> Any:
        states = self.given if self.given is not None else args[0] if args else inputs["hidden_states"]
        return (states, None)[: self.packing] if self.packing else states


class _Absent(nn.Module):
    """In place of a part that text alone does not need."""

    def forward(self, *_args: Any, **_inputs: Any) -> Any:
        raise RuntimeError("text runs through a part of the model beside its decoder and lm_head")


def hollow_class(
    model_config: PretrainedConfig, *, trust_remote_code: bool
) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """Return the model class of a target with hollow layers, and the part of its config that the class takes.

    Raises:
        TargetError: no model can be built by this config.
    """
    with (
        explained_library_errors(TargetError, "the target's config.json describes no model that can be built"),
        torch.device("meta"),
    ):
        model = auto_class(model_config).from_config(model_config, trust_remote_code=trust_remote_code)
    kind = type(model)

    def build(self: Any, *args: Any, **options: Any) -> None:
        kind.__init__(self, *args, **options)
        _hollow_out(self)

    # The library chooses conversions of a checkpoint by a class's name and module.
    hollow = type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
    whole = isinstance(model_config, cast(type, kind.config_class))
    return hollow, model_config if whole else model_config.get_text_config(decoder=True)


def find_packing(model: PreTrainedModel, decoder: nn.Module, ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """Let the layers return what this decoder expects of one; returns the last hidden states [1, T, Ht] of `ids`.

    Raises:
        RuntimeError, IndexError, ValueError, TypeError, AttributeError: the decoder's own, with whatever they return.
    """
    layers = _layers(model, decoder)
    for packing in _PACKINGS:
        for layer in layers:
            layer.packing = packing
        try:
            with torch.no_grad():
                states: torch.Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
            if packing == _PACKINGS[-1]:
                raise
            continue
        if states.shape == (*ids.shape, hidden_size):
            return states
    raise RuntimeError(f"its last hidden states have shape {tuple(states.shape)}")


@contextmanager
def give_states(model: PreTrainedModel, decoder: nn.Module, states: torch.Tensor) -> Iterator[None]:
    """Let the last layer return `states` [1, T, Ht], whatever its input."""
    last = _layers(model, decoder)[-1]
    last.given = states
    try:
        yield
    finally:
        last.given = None


def _layers(model: PreTrainedModel, decoder: nn.Module) -> list[_Layer]:
    return cast(list[_Layer], list(find_layers(decoder, _depth(model))))


def _depth(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def _hollow_out(model: PreTrainedModel) -> None:
    decoder, head = find_decoder(model), model.get_output_embeddings()
    layers = find_layers(decoder, _depth(model))
    for index, layer in enumerate(layers):
        layers[index] = _Layer(layer)
    above = [module for module in model.modules() if module is not decoder and decoder in set(module.modules())]
    for parent in above:
        for name, child in list(parent.named_children()):
            if child is not decoder and child is not head and child not in above:
                setattr(parent, name, _Absent())
