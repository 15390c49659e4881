"""Choice of the aux layers that a draft reads, so that one cache serves drafts that differ in them.

Rows are read and moved whole and cut on the training device, after decoding: a codec may mix layers in its bytes.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec, make_codec
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.errors import ConfigError
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.data.source import JoinedCaches


@dataclass(frozen=True, kw_only=True)
class AuxSubsetSpec(ShardSpec):
    """The spec of shards of whose layers, `stored_layer_ids`, only those in `aux_layer_ids` are used."""

    stored_layer_ids: tuple[int, ...]

    @functools.cached_property
    def aux(self) -> RowCodec:
        return make_codec(self.aux_codec, (len(self.stored_layer_ids), self.hidden_size))

    def decode_aux(self, encoded: EncodedRows) -> torch.Tensor:
        rows = self.aux.decode(encoded)
        return torch.stack([rows[:, self.stored_layer_ids.index(b)] for b in self.aux_layer_ids], dim=1)


def choose_aux_layers(source: TrainingSource, boundaries: Sequence[int] | None) -> TrainingSource:
    """Return a source of the same samples with these boundaries alone, in ascending order; None stands for all.

    Raises:
        ConfigError: boundaries that the cache does not have, none at all, repeated or not ascending.
    """
    stored = source.spec.aux_layer_ids
    if boundaries is None or tuple(boundaries) == stored:
        return source
    request = f"draft.aux_layer_ids {list(boundaries)}: the cache has the aux layers {list(stored)}"
    if not boundaries or list(boundaries) != sorted(set(boundaries)):
        raise ConfigError(f"{request}; name some of them, each once and in ascending order")
    missing = [boundary for boundary in boundaries if boundary not in stored]
    if missing:
        wider = ",".join(map(str, sorted({*stored, *boundaries})))
        raise ConfigError(
            f"{request}, and not {missing}; choose among them, or precompute a cache with cache.aux_layer_ids=[{wider}]"
        )
    fields = {**asdict(source.spec), "aux_layer_ids": tuple(boundaries)}
    return JoinedCaches([source], spec=AuxSubsetSpec(**fields, stored_layer_ids=stored))
