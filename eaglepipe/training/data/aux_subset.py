"""Lets a draft read some of a cache's aux layers, so that one cache serves drafts that differ in them.

Rows are read and moved whole and cut on the training device, after decoding: a codec may mix layers in its bytes.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.errors import ConfigError
from eaglepipe.training.data.batch import TrainingSource


def choose_aux_layers(source: TrainingSource, boundaries: Sequence[int] | None) -> TrainingSource:
    """The same samples with these boundaries alone, in ascending order; all of them where None is given.

    Raises:
        ConfigError: boundaries that the cache does not have, none at all, repeated or not ascending.
    """
    stored = source.aux_layer_ids
    if boundaries is None or tuple(boundaries) == stored:
        return source
    what = f"draft.aux_layer_ids {list(boundaries)}: the cache has the aux layers {list(stored)}"
    if not boundaries or list(boundaries) != sorted(set(boundaries)):
        raise ConfigError(f"{what}; name some of them, each once and in ascending order")
    missing = [boundary for boundary in boundaries if boundary not in stored]
    if missing:
        raise ConfigError(f"{what}, and not {missing}; choose among them, or precompute a cache that has it")
    return cast("TrainingSource", _SomeLayersSource(source, tuple(boundaries)))


class _View:
    """Everything of `inner` but what a subclass defines."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _SomeLayersSource(_View):
    def __init__(self, source: TrainingSource, boundaries: tuple[int, ...]) -> None:
        super().__init__(source)
        self.aux_layer_ids = boundaries
        self.aux_codec = _SomeLayersCodec(source.aux_codec, [source.aux_layer_ids.index(b) for b in boundaries])


class _SomeLayersCodec(_View):
    """Decodes rows [N, A, Ht] as the cache stores them to [N, chosen, Ht]."""

    def __init__(self, inner: Any, layers: Sequence[int]) -> None:
        super().__init__(inner)
        self._layers = tuple(layers)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (len(self._layers), *self._inner.row_shape[1:])

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        rows = self._inner.decode(encoded)
        return torch.stack([rows[:, layer] for layer in self._layers], dim=1)
