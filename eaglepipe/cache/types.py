"""The values that cross the cache's border: what a writer takes and what a reader gives, one sample at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.supervision.columns import HostColumns


@dataclass(frozen=True, kw_only=True)
class CachedSample:
    """One conversation as stored, unshifted; arrays are read-only views of the mapped shard.

    T tokens. Row i supervises the distribution after token i.
    """

    sample_id: str
    source: str
    input_ids: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.bool_]  # [T] assistant tokens
    supervised: NDArray[np.bool_]  # [T] this token and the next belong to one assistant turn
    position_mask: NDArray[np.bool_]  # [T] supervised, and the target's top-1 is in the draft vocabulary
    target_top1: NDArray[np.int32]  # [T] the target's argmax, -1 if unsupervised
    draft_mass: NDArray[np.float32]  # [T] share of the full softmax inside the draft vocabulary, 0 if unsupervised
    aux_payload: NDArray[np.uint8]  # [T, aux row bytes], encoded
    aux_scales: NDArray[np.floating] | None  # [T, scales], for codecs that have them, in the codec's dtype
    supervision: HostColumns  # columns of the supervised tokens by name, see `cache.supervision.columns`
    last_hidden_payload: NDArray[np.uint8] | None = None  # [T, supervision row bytes], if every token's is stored


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """What is known of every sample without touching a shard; N samples in cache order."""

    sample_ids: tuple[str, ...]
    num_tokens: NDArray[np.int32]  # [N]
    num_supervised: NDArray[np.int32]  # [N]
    sources: tuple[str, ...]
    source_of: NDArray[np.int16]  # [N] index into sources
    weights: NDArray[np.float64] | None = None  # [N] times that a sample is expected in an epoch; None: once
